//! TC ingress: decides for one frame whether it goes to a socket of ours.
//!
//! The shape is Cilium's transparent proxy's, plus one guard: the listener is assigned only for
//! what opens a connection. Everything simpler is reset under SYN cookies or always.

use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use metadata_proxy_common::Outcome;

use crate::{
    globals,
    raw::{self, Ipv4Header, Ipv6Header, Socket, TcpHeader, Tuple},
    segment::{self, Parsed},
};

/// Steers one frame; `None` if it is not metadata traffic.
#[inline(always)]
pub(crate) fn try_steer(ctx: &TcContext) -> Option<Outcome> {
    match segment::parse(ctx) {
        Parsed::Other => None,
        Parsed::Fragment => Some(Outcome::PassedFragment),
        Parsed::Malformed => Some(Outcome::PassedMalformed),
        Parsed::V4(mut ip, mut tcp) => {
            let tuple = Tuple::v4(&ip, &tcp);
            let opens = |listener: &Socket<'_>, tcp: &mut TcpHeader| {
                listener.accepts_syncookie::<Ipv4Header>(&mut ip, tcp)
            };
            Some(steer_segment(ctx, &tuple, &mut tcp, opens))
        }
        Parsed::V6(mut ip, mut tcp) => {
            let tuple = Tuple::v6(&ip, &tcp);
            let opens = |listener: &Socket<'_>, tcp: &mut TcpHeader| {
                listener.accepts_syncookie::<Ipv6Header>(&mut ip, tcp)
            };
            Some(steer_segment(ctx, &tuple, &mut tcp, opens))
        }
    }
}

#[inline(always)]
fn steer_segment(
    ctx: &TcContext,
    tuple: &Tuple,
    tcp: &mut TcpHeader,
    accepts_syncookie: impl FnOnce(&Socket<'_>, &mut TcpHeader) -> bool,
) -> Outcome {
    if let Some(socket) = raw::look_up(ctx, tuple) {
        if socket.is_of_a_connection() {
            return assign(ctx, &socket, Outcome::SteeredEstablished);
        }
        // A guest uses a port again whose last connection lingers in TIME_WAIT. Given to the
        // listener, the kernel drops the SYN as a duplicate (since 6.10, inet_ehash_insert). Passed
        // on, it meets the old socket, whose ACK the guest resets, which ends it: the guest's next
        // SYN, a second later, is steered.
        if tcp.is_syn() && socket.is_in_the_way(tuple.is_v4()) {
            return Outcome::PassedStray;
        }
    }
    let outcome = if tcp.is_syn() {
        // The same behind Neutron's REDIRECT, where the old socket has another address. There the
        // SYN needs no steering: redirected, it finds old socket and listener.
        if raw::is_left_of_redirected(ctx, tuple) {
            return Outcome::PassedStray;
        }
        Outcome::SteeredSyn
    } else if tcp.is_bare_ack() {
        Outcome::SteeredSyncookie
    } else {
        return Outcome::PassedStray;
    };
    let Some(listener) = raw::look_up_listener(ctx, tuple, tcp) else {
        return Outcome::PassedNoListener;
    };
    if matches!(outcome, Outcome::SteeredSyncookie) && !accepts_syncookie(&listener, tcp) {
        return Outcome::PassedStray;
    }
    assign(ctx, &listener, outcome)
}

#[inline(always)]
fn assign(ctx: &TcContext, socket: &Socket<'_>, outcome: Outcome) -> Outcome {
    let outcome = if socket.assign(ctx) {
        outcome
    } else {
        Outcome::PassedAssignRefused
    };
    if globals::debug_log() {
        debug!(ctx, "steer: {}", outcome.label());
    }
    outcome
}
