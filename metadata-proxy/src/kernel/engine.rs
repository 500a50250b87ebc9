//! Which engine a node gets, and why. Pure: facts and wishes in, a decision out.

use super::{EngineFacts, Probe};
use crate::config::{EngineChoice, SteeringConfig, words};

words! {
    /// What brings guests' connections to the listeners.
    Engine {
        /// TC programs on the guest-facing devices.
        Tc = "tc",
        /// A socket lookup program in each tenant namespace.
        SkLookup = "sk-lookup",
        /// Nothing of ours in the kernel.
        Bind = "bind",
    }

    /// How `steer` is attached to a device.
    AttachType {
        /// A TCX link (Linux 6.6 and later), pinned.
        Tcx = "tcx",
        /// A classic filter of the `clsact` queueing discipline.
        Clsact = "clsact",
    }
}

/// Which engine, and why.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Decision {
    /// The engine.
    pub engine: Engine,
    /// How its programs are attached, if it is [`Engine::Tc`].
    pub attach: Option<AttachType>,
    /// Why this one.
    pub reason: String,
}

/// Why a node can have no engine, or not the one that is wished for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No engine would do: nothing proves which tenant a connection comes from.
    #[error(
        "Linux {kernel} cannot tell which namespace an accepted connection belongs to \
         (SO_NETNS_COOKIE: {why}), so no connection's tenant could be proved; it takes Linux 5.14 \
         or later"
    )]
    NoNamespaceCookie {
        /// The kernel's release.
        kernel: String,
        /// What asking for it said.
        why: String,
    },
    /// The one that is configured cannot be had.
    #[error("steering.engine = \"{engine}\" cannot be had here: {why}; set it to \"auto\"")]
    NotHere {
        /// The engine.
        engine: Engine,
        /// What is missing.
        why: String,
    },
}

/// Chooses the engine.
///
/// # Errors
/// [`Refusal`] if there is none, or not the one that is configured.
pub fn choose_engine(facts: &EngineFacts, config: &SteeringConfig) -> Result<Decision, Refusal> {
    if let Probe::No(why) | Probe::Unknown(why) = &facts.netns_cookie {
        let kernel = facts.kernel.to_string();
        return Err(Refusal::NoNamespaceCookie {
            kernel,
            why: why.clone(),
        });
    }
    let not_here = |engine| move |why| Refusal::NotHere { engine, why };
    match config.engine {
        EngineChoice::Tc => {
            let attach = tc(facts).map_err(not_here(Engine::Tc))?;
            Ok(decision(Engine::Tc, Some(attach), "it is configured"))
        }
        EngineChoice::SkLookup => {
            sk_lookup(facts).map_err(not_here(Engine::SkLookup))?;
            Ok(decision(Engine::SkLookup, None, "it is configured"))
        }
        EngineChoice::Bind => Ok(decision(Engine::Bind, None, "it is configured")),
        EngineChoice::Auto => Ok(best(facts)),
    }
}

fn best(facts: &EngineFacts) -> Decision {
    let no_tc = match tc(facts) {
        Ok(AttachType::Tcx) => {
            return decision(
                Engine::Tc,
                Some(AttachType::Tcx),
                "this kernel has all it needs",
            );
        }
        Ok(AttachType::Clsact) => {
            let reason = format!(
                "this kernel has all it needs except TCX (Linux {} < 6.6)",
                facts.kernel
            );
            return decision(Engine::Tc, Some(AttachType::Clsact), &reason);
        }
        Err(why) => why,
    };
    match sk_lookup(facts) {
        Ok(()) => decision(Engine::SkLookup, None, &format!("no tc: {no_tc}")),
        Err(no_lookup) => {
            let reason = if no_tc == no_lookup {
                format!("no tc and no sk-lookup: {no_tc}")
            } else {
                format!("no tc: {no_tc}; no sk-lookup: {no_lookup}")
            };
            decision(Engine::Bind, None, &reason)
        }
    }
}

fn decision(engine: Engine, attach: Option<AttachType>, reason: &str) -> Decision {
    Decision {
        engine,
        attach,
        reason: reason.to_owned(),
    }
}

/// How TC programs would be attached, or why they cannot be.
fn tc(facts: &EngineFacts) -> Result<AttachType, String> {
    facts.bpf_tc.as_result()?;
    // The release that brought TCX is what aya goes by too.
    if facts.kernel.at_least(6, 6) {
        return Ok(AttachType::Tcx);
    }
    match &facts.clsact {
        Probe::No(why) => Err(why.clone()),
        // Not found out without changing anything; attaching will tell.
        Probe::Yes | Probe::Unknown(_) => Ok(AttachType::Clsact),
    }
}

fn sk_lookup(facts: &EngineFacts) -> Result<(), String> {
    facts.bpf_sk_lookup.as_result()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn facts(kernel: &str) -> EngineFacts {
        EngineFacts {
            kernel: kernel.parse().unwrap(),
            netns_cookie: Probe::Yes,
            bpf_tc: Probe::Yes,
            bpf_sk_lookup: Probe::Yes,
            bpf_connect: Probe::Yes,
            clsact: Probe::Yes,
        }
    }

    fn no(why: &str) -> Probe {
        Probe::No(why.to_owned())
    }

    fn choose(
        facts: &EngineFacts,
        engine: EngineChoice,
    ) -> Result<(Engine, Option<AttachType>), Refusal> {
        let config = SteeringConfig {
            engine,
            ..Config::default().steering
        };
        choose_engine(facts, &config).map(|decision| (decision.engine, decision.attach))
    }

    #[test]
    fn a_kernel_with_everything_gets_tc() {
        let auto = |kernel| choose(&facts(kernel), EngineChoice::Auto).unwrap();
        assert_eq!(auto("6.18.0"), (Engine::Tc, Some(AttachType::Tcx)));
        assert_eq!(auto("6.6.0"), (Engine::Tc, Some(AttachType::Tcx)));
        assert_eq!(auto("6.5.9"), (Engine::Tc, Some(AttachType::Clsact)));
        assert_eq!(auto("5.14.0"), (Engine::Tc, Some(AttachType::Clsact)));
    }

    #[test]
    fn a_kernel_without_the_cookie_gets_nothing_whatever_is_configured() {
        let old = EngineFacts {
            netns_cookie: no("Protocol not available"),
            ..facts("5.10.0")
        };
        for engine in [
            EngineChoice::Auto,
            EngineChoice::Tc,
            EngineChoice::SkLookup,
            EngineChoice::Bind,
        ] {
            let refusal = choose(&old, engine).unwrap_err();
            assert!(
                matches!(refusal, Refusal::NoNamespaceCookie { .. }),
                "{engine}"
            );
            assert!(refusal.to_string().contains("5.14"), "{refusal}");
        }
    }

    #[test]
    fn what_is_missing_leads_to_the_next_best() {
        let no_clsact = EngineFacts {
            clsact: no("no sch_ingress"),
            ..facts("6.1.0")
        };
        assert_eq!(
            choose(&no_clsact, EngineChoice::Auto),
            Ok((Engine::SkLookup, None))
        );
        let unknown = EngineFacts {
            clsact: Probe::Unknown("modules".into()),
            ..facts("6.1.0")
        };
        assert_eq!(
            choose(&unknown, EngineChoice::Auto),
            Ok((Engine::Tc, Some(AttachType::Clsact)))
        );
        let no_bpf = EngineFacts {
            bpf_tc: no("denied"),
            bpf_sk_lookup: no("denied"),
            ..facts("6.1.0")
        };
        assert_eq!(
            choose(&no_bpf, EngineChoice::Auto),
            Ok((Engine::Bind, None))
        );
    }

    #[test]
    fn the_reason_names_what_is_missing() {
        let steering = Config::default().steering;
        let facts = EngineFacts {
            bpf_tc: no("no classifiers"),
            bpf_sk_lookup: no("no lookups"),
            ..facts("6.1.0")
        };
        let reason = choose_engine(&facts, &steering).unwrap().reason;
        assert_eq!(reason, "no tc: no classifiers; no sk-lookup: no lookups");
    }

    #[test]
    fn an_engine_that_is_configured_is_not_replaced_by_another() {
        let facts = EngineFacts {
            bpf_tc: no("denied"),
            ..facts("6.18.0")
        };
        assert_eq!(
            choose(&facts, EngineChoice::Tc),
            Err(Refusal::NotHere {
                engine: Engine::Tc,
                why: "denied".into()
            })
        );
        assert_eq!(
            choose(&facts, EngineChoice::SkLookup),
            Ok((Engine::SkLookup, None))
        );
        assert_eq!(choose(&facts, EngineChoice::Bind), Ok((Engine::Bind, None)));
    }
}
