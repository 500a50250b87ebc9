//! Messages of the registration protocol, both ways.

use metadata_proxy::register::{Reply, Request};

/// Any message is taken or refused; what is taken is the same after it was written again.
pub fn register(data: &[u8]) {
    if let Ok(request) = Request::decode(data) {
        let again = Request::decode(&request.encode()).expect("our own message is refused");
        assert_eq!(again, request);
        let socket = &request.settings.agent_socket;
        assert!(socket.is_absolute() && socket.as_os_str().len() <= 107);
        assert!((1..=16).contains(&request.settings.binds.len()));
    }
    if let Ok(reply) = Reply::decode(data) {
        let again = Reply::decode(&reply.encode()).expect("our own reply is refused");
        match (&again, &reply) {
            // Shortened, and on one line.
            (Reply::Failed { reason }, Reply::Failed { .. }) => {
                assert!(reason.len() <= 1000 && !reason.contains(char::is_control));
            }
            _ => assert_eq!(again, reply),
        }
    }
}
