//! Messages of the hand-over, both ways.

use metadata_proxy::takeover::{Message, MessageError, PROTOCOL};

/// Any message is taken or refused; what is taken is the same after it was written again, and the
/// first one is of this protocol or refused.
pub fn takeover(data: &[u8]) {
    if let Ok(message) = Message::decode(data) {
        match message.encode() {
            Ok(bytes) => {
                let again = Message::decode(&bytes).expect("our own message is refused");
                assert_eq!(again, message);
            }
            // Written out it may be longer than it came.
            Err(MessageError::TooLong) => {}
            Err(error) => panic!("{error}"),
        }
    }
    if let Ok(Message::Hello { protocol, .. }) = Message::decode_first(data) {
        assert_eq!(protocol, PROTOCOL);
    }
}
