//! The closed sets of words a configuration may use.

/// Declares an enum together with the words that name its variants in files, flags and output.
macro_rules! words {
    ($($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $variant_doc:literal])+ $variant:ident = $word:literal,)+ })+) => {
        $(
            $(#[doc = $doc])+
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
            pub enum $name {
                $($(#[doc = $variant_doc])+ $variant,)+
            }

            impl $name {
                /// Every word, in the order of declaration.
                pub const WORDS: &'static [&'static str] = &[$($word,)+];

                /// The word for it.
                #[must_use]
                pub const fn word(self) -> &'static str {
                    match self {
                        $(Self::$variant => $word,)+
                    }
                }

                /// The variant a word names.
                #[must_use]
                pub fn from_word(word: &str) -> Option<Self> {
                    match word {
                        $($word => Some(Self::$variant),)+
                        _ => None,
                    }
                }
            }

            impl std::fmt::Display for $name {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.pad(self.word())
                }
            }

            impl serde::Serialize for $name {
                fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    serializer.serialize_str(self.word())
                }
            }
        )+
    };
}

pub(crate) use words;

words! {
    /// Which engine brings guests' connections to the listeners, or that the node decides.
    EngineChoice {
        /// The best the node has; `check` says which and why.
        Auto = "auto",
        /// TC programs on the guest-facing devices.
        Tc = "tc",
        /// A socket lookup program in each tenant namespace.
        SkLookup = "sk-lookup",
        /// Nothing in the kernel: the metadata address is local, or somebody else redirects.
        Bind = "bind",
    }

    /// Who answers.
    UpstreamKind {
        /// Neutron's metadata agent behind its unix socket.
        Agent = "agent",
        /// An HTTP endpoint, over TCP or a unix socket.
        Http = "http",
        /// The agent by itself, from a file.
        Embedded = "embedded",
    }

    /// What becomes of a system call that the agent has no use for.
    Seccomp {
        /// It is refused with `EPERM`.
        Enforce = "enforce",
        /// It is done, and the kernel's audit log says so.
        Log = "log",
        /// It is done.
        Off = "off",
    }

    /// How log lines are written.
    LogFormat {
        /// For people and journald.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_names_the_variant_that_says_it() {
        for word in EngineChoice::WORDS {
            assert_eq!(
                EngineChoice::from_word(word).map(EngineChoice::word),
                Some(*word)
            );
        }
        assert_eq!(EngineChoice::from_word("TC"), None);
    }
}
