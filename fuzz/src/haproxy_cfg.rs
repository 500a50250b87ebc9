//! The parser of the configuration that Neutron writes for haproxy.

use metadata_proxy::{
    neutron::haproxy_cfg::parse,
    register::{Client, Request},
};

/// Any text is taken or refused with an explanation. What is taken can be registered as it is: what
/// the stand-in reads is what the agent hears.
pub fn haproxy_cfg(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match parse(text) {
        Ok(config) => {
            let request = Request {
                tenant: config.tenant,
                settings: config.settings,
                client: Client {
                    pid: 1,
                    version: String::new(),
                },
            };
            match Request::decode(&request.encode()) {
                Ok(heard) => assert_eq!(heard, request),
                // The agent may be stricter; it must say why.
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
