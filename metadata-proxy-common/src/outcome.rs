//! How every packet and every connect ended: the index space of the `OUTCOMES` counters.

/// Declares [`Outcome`] together with its name and one-line meaning, so that the three can not
/// drift apart.
macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $index:literal, $label:literal;)+) => {
        /// One way in which a packet or a connect ended; indexes the per-CPU array `OUTCOMES`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Outcome {
            $($(#[doc = $doc])+ $variant = $index,)+
        }

        impl Outcome {
            /// Every outcome, in index order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name used in metrics, logs and `status`.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }
        }
    };
}

outcomes! {
    /// A packet of an open connection was handed to its socket.
    SteeredEstablished = 0, "steered_established";
    /// A SYN was handed to the listener.
    SteeredSyn = 1, "steered_syn";
    /// An ACK that carried a valid SYN cookie was handed to the listener.
    SteeredSyncookie = 2, "steered_syncookie";
    /// Metadata traffic, but neither of an open connection nor fit to open one: passed untouched.
    PassedStray = 3, "passed_stray";
    /// Metadata traffic, but this namespace has no listener: passed untouched.
    PassedNoListener = 4, "passed_no_listener";
    /// The kernel refused the assignment: passed untouched.
    PassedAssignRefused = 5, "passed_assign_refused";
    /// A fragment addressed to the metadata address: passed untouched.
    PassedFragment = 6, "passed_fragment";
    /// A frame addressed to the metadata address whose headers do not parse: passed untouched.
    PassedMalformed = 7, "passed_malformed";
    /// A process's connect was rewritten to the listener.
    ConnectRewritten = 8, "connect_rewritten";
    /// A process dialled the metadata address from a namespace that is no tenant: left alone.
    ConnectNoTenant = 9, "connect_no_tenant";
    /// The address dialled could not be recorded, so it was not rewritten.
    ConnectUnrecorded = 10, "connect_unrecorded";
    /// `getpeername` was answered with the address the process had dialled.
    PeerNameRestored = 11, "peer_name_restored";
    /// The fallback engine's socket lookup chose the listener.
    LookupAssigned = 12, "lookup_assigned";
    /// The fallback engine's socket lookup found no listener or was refused.
    LookupUnassigned = 13, "lookup_unassigned";
}

impl Outcome {
    /// How many there are: the length of `OUTCOMES`.
    pub const COUNT: u32 = 14;

    /// Index into `OUTCOMES`.
    #[must_use]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

const _: () = assert!(Outcome::ALL.len() == Outcome::COUNT as usize);
const _: () = {
    let mut index = 0;
    while index < Outcome::ALL.len() {
        assert!(
            Outcome::ALL[index] as usize == index,
            "outcomes must be numbered in order"
        );
        index += 1;
    }
};
