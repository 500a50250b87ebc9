//! Everything unsafe: raw context access and raw helpers, turned into safe types.
//!
//! aya-ebpf 0.2 wraps none of the socket helpers and gives socket contexts no accessors. Nothing
//! outside this folder dereferences a context or calls a helper of the kernel.

mod contexts;
mod frame;
mod socket;

pub(crate) use self::{
    contexts::{LookupContext, SockAddr},
    frame::{Ipv4Header, Ipv6Header, TcpHeader, load, load_at, load_u16, words},
    socket::{Socket, Tuple, is_left_of_redirected, look_up, look_up_listener},
};
