//! Replicas that are linked by hand, without the simulator.

use tidings::core::{Input, LinkId, Output, Replica, Time};

/// Hands an output of one replica to another one at the end of this link. Outputs that are no traffic are left out.
pub fn carry(now: Time, link: LinkId, from: &mut Replica, to: &mut Replica, output: &Output) {
    match output {
        Output::Stream(_, lane, bytes) => {
            from.handle(now, Input::Drained(link, *lane, bytes.len()));
            to.handle(now, Input::Stream(link, *lane, bytes));
        }
        Output::Datagram(_, bytes) => to.handle(now, Input::Datagram(link, bytes)),
        _ => {}
    }
}
