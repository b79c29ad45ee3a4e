//! Support for the tests and measurements of this repository.
//!
//! For the simulator: random histories that mix writes with every fault ([`Plan`], [`Elections`]), and scripted stories
//! that run twice, once as they are and once with one rule broken by a [`Control`](tidings::Control). The broken run is
//! the negative control of the test. A check that passes with its rule broken does not count.
//!
//! For real nodes: [`nodes`] on loopback, a [`relay`] that loses and delays their packets, a certificate [`authority`],
//! [`strangers`] that are in the way, child [`processes`], [events](LogEvents) of the log, and temporary folders.
//!
//! Invariants: a seed determines a history completely. Whatever is drawn here comes from [`Dice`], never from the
//! generators of the replicas, so that a change in a replica does not change the history that tests it. Without the
//! feature `controls` this crate switches no control on, so that measurements may use it.

pub mod authority;
#[cfg(feature = "controls")]
mod detection;
mod folder;
#[cfg(feature = "controls")]
mod leading;
mod logs;
pub mod nodes;
#[cfg(feature = "controls")]
mod plan;
pub mod processes;
pub mod relay;
pub mod replicas;
mod seeds;
pub mod strangers;
pub mod tls;
mod virtual_time;
mod watching;

#[cfg(feature = "controls")]
pub use detection::{Noticed, holds_unless, notice, with_control};
pub use folder::Folder;
#[cfg(feature = "controls")]
pub use leading::Elections;
pub use logs::{LogEvent, LogEvents};
#[cfg(feature = "controls")]
pub use plan::Plan;
pub use seeds::{Dice, for_chosen_seeds, for_each_seed, number};
pub use virtual_time::{SHORT_QUARANTINE, electing, ms, run_until, short_leases, voters};
pub use watching::Watcher;
