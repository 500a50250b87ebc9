//! One request after the other over a blocking netlink socket.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The kernel fills at most this much of a dump in one message (`NLMSG_GOODSIZE`, netlink(7)).
const RECEIVE_BYTES: usize = 32 * 1024;

/// A socket for requests, in the namespace of the thread that opened it.
pub(super) struct RequestSocket {
    socket: Socket,
    sequence: u32,
}

impl RequestSocket {
    /// Opens a socket.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends a request that changes something and waits for the kernel's verdict.
    pub(super) fn execute(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(message, flags | NLM_F_ACK, drop)
    }

    /// Sends a request and passes every message of the answer to `each`.
    pub(super) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            if self.read_datagram(&buffer, &mut each)? {
                return Ok(());
            }
        }
    }

    /// Reads one datagram of an answer; true when it ended the answer.
    fn read_datagram(
        &self,
        mut rest: &[u8],
        each: &mut impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<bool> {
        while !rest.is_empty() {
            let message = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
                Ok(message) => message,
                // An attribute this version cannot read says nothing about the others: a newer
                // kernel must not make a device invisible silently, so it is an error.
                Err(error) => return Err(io::Error::other(error)),
            };
            let len = message.header.length as usize;
            if message.header.sequence_number == self.sequence {
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(true),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(true),
                            Some(_) => Err(error.to_io()),
                        };
                    }
                    NetlinkPayload::InnerMessage(inner) => each(inner),
                    _ => {}
                }
            }
            // Messages are aligned to four bytes (NLMSG_ALIGN).
            let aligned = len.next_multiple_of(4);
            if len == 0 || aligned >= rest.len() {
                break;
            }
            rest = &rest[aligned..];
        }
        Ok(false)
    }
}
