//! Crowds: rosters of as many records as one frame may have, about runs that nobody has.
//!
//! Each kind of frame here once cost its readers memory in proportion to the square of its records, to how often it was
//! repeated, or to the addresses in it.

use rand_core::Rng;

use super::liar::{Liar, RECORDS};
use crate::id::RunId;
use crate::membership::MEMBERS_MAX;
use crate::wire::{Kind, Writer};

impl Liar {
    /// A roster about made-up runs. There are so few numbers of them that a later one tells of the same runs again.
    pub(super) fn crowd(&mut self) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Roster);
        writer.byte(RECORDS);
        let first = 0x11e0_0000 + (self.below(8) as u64) * 0x1_0000;
        let mut tell = |n: usize, name: &str, addr: u32, generation: usize, has_left: bool| {
            writer.run(RunId::new(first + n as u64));
            writer.bytes(name.as_bytes());
            writer.bytes(&addr.to_be_bytes());
            writer.u16_le(7_400);
            writer.u16_le(generation as u16);
            writer.u16_le(0);
            writer.byte(u8::from(has_left));
            writer.varint(1);
            writer.bytes(b"");
            writer.varint(0);
        };
        let (most, there) = (MEMBERS_MAX, 0x0ac8_0001);
        let drawn = self.below(0x8000);
        match self.random.next_u32() % 7 {
            0 => (0..most).for_each(|n| tell(n, "lie-crowd", there + n as u32, drawn, false)),
            1 => (0..most).for_each(|n| tell(n, &format!("lie-{n}"), there, drawn, false)),
            // They all leave, and so make room.
            2 => (0..most).for_each(|n| tell(n, &format!("lie-{n}"), there, drawn, true)),
            // One of them takes the places of all others.
            3 => (0..most).for_each(|n| tell(n / 2, "lie-crowd", there, drawn, n > 1 && n % 2 == 1)),
            4 => (0..most).for_each(|generation| tell(0, "lie-0", there, generation, generation > 0)),
            5 => (0..most).for_each(|n| tell(0, "lie-0", there, n / 2, n % 2 == 1)),
            _ => (0..most).for_each(|_| tell(2, "lie-crowd", self.random.next_u32(), 0, false)),
        }
        writer.finish()
    }
}
