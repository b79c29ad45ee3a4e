//! Messages between nodes and voters: one datagram each, which may be lost, duplicated or overtaken by a later one.

use std::time::Duration;

use super::voter_list::{Step, read_accepted, read_stamp, write_accepted, write_stamp};
use super::{ELECTION_NAME_BYTES_MAX, LEADER_VALUE_BYTES_MAX, VoterRules};
use crate::config::LEASE_TIME_MAX;
use crate::time::Stamp;
use crate::wire::{Kind, Reader, WireError, Writer};

/// A message to or from a voter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ElectionMessage {
    Request(Call),
    /// With the id of the request that it answers. `None`: a report that nobody asked for just now.
    Answer(Option<u64>, VoterAnswer),
}

/// A request to a voter, with what all requests have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Call {
    /// The hash of the sender's [`VoterRules`].
    pub(crate) hash: u64,
    /// Tells the sender when it sent the request; the id means nothing to others. Later requests have greater ids, or
    /// the same.
    pub(crate) request_id: u64,
    /// The lease time for which the sender wants a promise.
    pub(crate) lease: Duration,
    pub(crate) request: Request,
}

/// What a grant request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum GrantKind {
    /// A grant under a new term.
    New,
    /// The sender holds the lease under this term already, and the voter only has to learn of it.
    Held,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    /// Asks whether the voter would grant this lease to the sender. `since` is when its candidacy began to wait; `None`
    /// if it does not wait but tries once.
    Ask { name: String, since: Option<u64> },
    /// Requests a grant of this lease under this term.
    Grant { name: String, term: Stamp, kind: GrantKind, value: Vec<u8> },
    /// Prolongs the sender's session, and with it all that the voter granted under it.
    Renew { session: u64 },
    /// The sender does not hold the lease under this term any more, or does not wait for it.
    Release { name: String, term: Stamp },
    /// Asks which run the voter has granted this lease, and for a report at each change.
    Watch { name: String },
    /// Asks for the promise to accept no lesser ballot about the next list of voters. See [`super::change`].
    Prepare { ballot: Stamp },
    /// Asks to accept this step under this ballot.
    Accept { ballot: Stamp, step: Step },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum VoterAnswer {
    Statement {
        name: String,
        told: VoterStatement,
    },
    /// The lease is granted under this term and session. Everything under the session is promised for the lease time of
    /// the request.
    Granted {
        name: String,
        term: Stamp,
        session: u64,
    },
    /// Whether the session continues. If not, nothing that was granted under it is promised any more.
    Renewed {
        session: u64,
        goes_on: bool,
    },
    Released {
        name: String,
        term: Stamp,
    },
    Reported {
        name: String,
        grant: Option<(Stamp, Vec<u8>)>,
    },
    /// The voter rules of the two nodes differ; these are the sender's.
    Differs(VoterRules),
    /// The greatest ballot that the node has promised, which is another one if the request came too late; the greatest
    /// term that it has granted; and the step that it has accepted, with its ballot.
    Prepared {
        ballot: Stamp,
        term_max: u64,
        accepted: Option<(Stamp, Step)>,
    },
    /// The greatest ballot that the node has promised. If it is that of the request, its step is accepted.
    Accepted {
        ballot: Stamp,
    },
    /// The node has no disk, so it can promise nothing about this ballot.
    NoDisk {
        ballot: Stamp,
    },
}

/// A voter's statement to a candidate. It promises nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct VoterStatement {
    /// The voter's wall clock, in units of a stamp's clock.
    pub(crate) clock: u64,
    /// The greatest term that the voter knows for the lease.
    pub(crate) lease_term_max: u64,
    pub(crate) standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Standing {
    /// The voter would grant the lease.
    Free,
    /// Another run holds the lease or is offered it, for this many milliseconds unless something changes.
    Taken(u32),
    /// The voter grants nothing to anybody for this many milliseconds.
    Quarantined(u32),
}

impl ElectionMessage {
    /// Whether it has lease times, which are sent only to runs that are known to read them.
    pub(crate) fn has_times(&self) -> bool {
        match self {
            Self::Request(Call { request: Request::Accept { step, .. }, .. })
            | Self::Answer(_, VoterAnswer::Prepared { accepted: Some((_, step)), .. }) => {
                step.electorate.times.is_some()
            }
            _ => false,
        }
    }

    /// An answer that promises something, for tests elsewhere.
    #[cfg(test)]
    pub(crate) fn accepted(ballot: Stamp) -> Self {
        Self::Answer(None, VoterAnswer::Accepted { ballot })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Election);
        match self {
            Self::Request(call) => {
                writer.byte(call.request.tag());
                writer.varint(call.request_id);
                writer.u64_le(call.hash);
                writer.varint(call.lease.as_millis() as u64);
                call.request.write(&mut writer);
            }
            Self::Answer(number, answer) => {
                writer.byte(answer.tag());
                writer.varint(number.unwrap_or(UNASKED));
                answer.write(&mut writer);
            }
        }
        writer.finish_datagram()
    }

    pub(crate) fn decode(mut reader: Reader<'_>) -> Result<Self, WireError> {
        let (tag, number) = (reader.byte()?, reader.varint()?);
        let message = if tag < FIRST_ANSWER {
            let (hash, lease) = (reader.u64_le()?, Duration::from_millis(reader.varint()?));
            if lease > LEASE_TIME_MAX {
                return Err(WireError::Form);
            }
            let request = Request::read(tag, &mut reader)?;
            Self::Request(Call { hash, request_id: number, lease, request })
        } else {
            Self::Answer(
                Some(number).filter(|number| *number != UNASKED),
                VoterAnswer::read(tag, &mut reader)?,
            )
        };
        reader.end()?;
        Ok(message)
    }
}

/// In the place of a request's id: the answer answers none. Requests have ids from 1 on.
const UNASKED: u64 = 0;

/// The tag of the first answer. Requests have smaller tags.
const FIRST_ANSWER: u8 = 16;

impl Request {
    fn tag(&self) -> u8 {
        match self {
            Self::Ask { .. } => 0,
            Self::Grant { .. } => 1,
            Self::Renew { .. } => 2,
            Self::Release { .. } => 3,
            Self::Watch { .. } => 4,
            Self::Prepare { .. } => 5,
            Self::Accept { .. } => 6,
        }
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Ask { name, since } => {
                writer.bytes(name.as_bytes());
                writer.byte(u8::from(since.is_some()));
                writer.u64_le(since.unwrap_or(0));
            }
            Self::Grant { name, term, kind, value } => {
                writer.bytes(name.as_bytes());
                write_stamp(writer, *term);
                writer.byte(u8::from(*kind == GrantKind::Held));
                writer.bytes(value);
            }
            Self::Renew { session } => writer.u64_le(*session),
            Self::Release { name, term } => {
                writer.bytes(name.as_bytes());
                write_stamp(writer, *term);
            }
            Self::Watch { name } => writer.bytes(name.as_bytes()),
            Self::Prepare { ballot } => write_stamp(writer, *ballot),
            Self::Accept { ballot, step } => {
                write_stamp(writer, *ballot);
                step.write(writer);
            }
        }
    }

    fn read(tag: u8, reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(match tag {
            0 => {
                let (name, waits, since) = (read_name(reader)?, reader.byte()?, reader.u64_le()?);
                Self::Ask { name, since: (waits == 1).then_some(since) }
            }
            1 => Self::Grant {
                name: read_name(reader)?,
                term: read_stamp(reader)?,
                kind: if reader.byte()? == 1 { GrantKind::Held } else { GrantKind::New },
                value: read_value(reader)?,
            },
            2 => Self::Renew { session: reader.u64_le()? },
            3 => Self::Release { name: read_name(reader)?, term: read_stamp(reader)? },
            4 => Self::Watch { name: read_name(reader)? },
            5 => Self::Prepare { ballot: read_stamp(reader)? },
            6 => Self::Accept { ballot: read_stamp(reader)?, step: Step::read(reader)? },
            _ => return Err(WireError::Form),
        })
    }
}

impl VoterAnswer {
    fn tag(&self) -> u8 {
        let tag = match self {
            Self::Statement { .. } => 0,
            Self::Granted { .. } => 1,
            Self::Renewed { .. } => 2,
            Self::Released { .. } => 3,
            Self::Reported { .. } => 4,
            Self::Differs(rules) if rules.voters_epoch == 0 => 5,
            Self::Differs(_) => 6,
            Self::Prepared { .. } => 7,
            Self::Accepted { .. } => 8,
            Self::NoDisk { .. } => 9,
        };
        FIRST_ANSWER + tag
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Statement { name, told } => {
                writer.bytes(name.as_bytes());
                writer.u64_le(told.clock);
                writer.u64_le(told.lease_term_max);
                let (standing, left_ms) = match told.standing {
                    Standing::Free => (0, 0),
                    Standing::Taken(left_ms) => (1, left_ms),
                    Standing::Quarantined(left_ms) => (2, left_ms),
                };
                writer.byte(standing);
                writer.varint(left_ms.into());
            }
            Self::Granted { name, term, session } => {
                writer.bytes(name.as_bytes());
                write_stamp(writer, *term);
                writer.u64_le(*session);
            }
            Self::Renewed { session, goes_on } => {
                writer.u64_le(*session);
                writer.byte(u8::from(*goes_on));
            }
            Self::Released { name, term } => {
                writer.bytes(name.as_bytes());
                write_stamp(writer, *term);
            }
            Self::Reported { name, grant } => {
                writer.bytes(name.as_bytes());
                writer.byte(u8::from(grant.is_some()));
                if let Some((term, value)) = grant {
                    write_stamp(writer, *term);
                    writer.bytes(value);
                }
            }
            Self::Differs(rules) => {
                if rules.voters_epoch > 0 {
                    writer.varint(rules.voters_epoch);
                }
                writer.u64_le(rules.voters_hash);
                writer.varint(rules.lease_time_max.as_millis() as u64);
                writer.varint(rules.clock_skew_max.as_millis() as u64);
            }
            Self::Prepared { ballot, term_max, accepted } => {
                write_stamp(writer, *ballot);
                writer.u64_le(*term_max);
                write_accepted(writer, accepted.as_ref());
            }
            Self::Accepted { ballot } | Self::NoDisk { ballot } => write_stamp(writer, *ballot),
        }
    }

    fn read(tag: u8, reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(match tag - FIRST_ANSWER {
            0 => {
                let (name, clock, top) = (read_name(reader)?, reader.u64_le()?, reader.u64_le()?);
                let (standing, left_ms) = (reader.byte()?, reader.varint()?);
                let left_ms = u32::try_from(left_ms).map_err(|_| WireError::Form)?;
                let standing = match standing {
                    0 => Standing::Free,
                    1 => Standing::Taken(left_ms),
                    2 => Standing::Quarantined(left_ms),
                    _ => return Err(WireError::Form),
                };
                Self::Statement { name, told: VoterStatement { clock, lease_term_max: top, standing } }
            }
            1 => Self::Granted {
                name: read_name(reader)?,
                term: read_stamp(reader)?,
                session: reader.u64_le()?,
            },
            2 => Self::Renewed { session: reader.u64_le()?, goes_on: reader.byte()? == 1 },
            3 => Self::Released { name: read_name(reader)?, term: read_stamp(reader)? },
            4 => {
                let name = read_name(reader)?;
                let is_granted = reader.byte()? == 1;
                let grant = if is_granted { Some((read_stamp(reader)?, read_value(reader)?)) } else { None };
                Self::Reported { name, grant }
            }
            tag @ (5 | 6) => Self::Differs(VoterRules {
                voters_epoch: if tag == 6 { reader.varint()? } else { 0 },
                voters_hash: reader.u64_le()?,
                lease_time_max: Duration::from_millis(reader.varint()?),
                clock_skew_max: Duration::from_millis(reader.varint()?),
            }),
            7 => Self::Prepared {
                ballot: read_stamp(reader)?,
                term_max: reader.u64_le()?,
                accepted: read_accepted(reader)?,
            },
            8 => Self::Accepted { ballot: read_stamp(reader)? },
            9 => Self::NoDisk { ballot: read_stamp(reader)? },
            _ => return Err(WireError::Form),
        })
    }
}

fn read_name(reader: &mut Reader<'_>) -> Result<String, WireError> {
    let name = std::str::from_utf8(reader.bytes()?).map_err(|_| WireError::Form)?;
    let fits = (1..=ELECTION_NAME_BYTES_MAX).contains(&name.len());
    if fits { Ok(name.to_owned()) } else { Err(WireError::Form) }
}

fn read_value(reader: &mut Reader<'_>) -> Result<Vec<u8>, WireError> {
    let value = reader.bytes()?;
    if value.len() > LEADER_VALUE_BYTES_MAX { Err(WireError::Form) } else { Ok(value.to_vec()) }
}

#[cfg(test)]
mod tests {
    use super::super::VOTERS_BYTES_MAX;
    use super::super::voter_list::Electorate;
    use super::*;
    use crate::config::{CLOCK_SKEW_MAX, LeaseTimes, VOTERS_MAX};
    use crate::id::RunId;
    use crate::membership::PACKET_BYTES_MIN;
    use crate::time::CLOCK_VALUE_MAX;

    fn all() -> Vec<ElectionMessage> {
        let name = || "n".repeat(ELECTION_NAME_BYTES_MAX);
        let value = || vec![7; LEADER_VALUE_BYTES_MAX];
        let term = Stamp { clock: u64::MAX, origin: RunId::new(3) };
        // As many bytes of names as a list may have, and as many names.
        let step = || {
            let voter = |i| format!("{i:02}{}", "v".repeat(if i < 28 { 27 } else { 26 }));
            let times = LeaseTimes { lease_time_max: LEASE_TIME_MAX, clock_skew_max: CLOCK_SKEW_MAX };
            let voters = (0..VOTERS_MAX).map(voter).collect();
            Step { electorate: Electorate { voters, times: Some(times) }, term_floor: CLOCK_VALUE_MAX }
        };
        assert_eq!(step().electorate.voters.concat().len(), VOTERS_BYTES_MAX);
        let requests = [
            Request::Ask { name: name(), since: Some(9) },
            Request::Ask { name: name(), since: None },
            Request::Grant { name: name(), term, kind: GrantKind::Held, value: value() },
            Request::Renew { session: 4 },
            Request::Release { name: name(), term },
            Request::Watch { name: name() },
            Request::Prepare { ballot: term },
            Request::Accept { ballot: term, step: step() },
        ];
        let told = |standing| VoterStatement { clock: 5, lease_term_max: 6, standing };
        let answers = [
            VoterAnswer::Statement { name: name(), told: told(Standing::Free) },
            VoterAnswer::Statement { name: name(), told: told(Standing::Taken(5)) },
            VoterAnswer::Statement { name: name(), told: told(Standing::Quarantined(u32::MAX)) },
            VoterAnswer::Granted { name: name(), term, session: 8 },
            VoterAnswer::Renewed { session: 8, goes_on: false },
            VoterAnswer::Released { name: name(), term },
            VoterAnswer::Reported { name: name(), grant: Some((term, value())) },
            VoterAnswer::Reported { name: name(), grant: None },
            VoterAnswer::Differs(VoterRules {
                voters_epoch: 0,
                voters_hash: 1,
                lease_time_max: LEASE_TIME_MAX,
                clock_skew_max: Duration::from_millis(u64::MAX),
            }),
            VoterAnswer::Differs(VoterRules {
                voters_epoch: 2,
                voters_hash: 1,
                lease_time_max: LEASE_TIME_MAX,
                clock_skew_max: Duration::ZERO,
            }),
            VoterAnswer::Prepared { ballot: term, term_max: 1, accepted: Some((term, step())) },
            VoterAnswer::Prepared { ballot: term, term_max: 1, accepted: None },
            VoterAnswer::Accepted { ballot: term },
            VoterAnswer::NoDisk { ballot: term },
        ];
        let call = |request| Call { hash: 1, request_id: u64::MAX, lease: LEASE_TIME_MAX, request };
        let requests = requests.into_iter().map(|request| ElectionMessage::Request(call(request)));
        requests
            .chain(answers.into_iter().map(|answer| ElectionMessage::Answer(Some(u64::MAX), answer)))
            .collect()
    }

    fn decode(bytes: &[u8]) -> Result<ElectionMessage, WireError> {
        let (kind, reader) = Reader::new(bytes)?;
        assert_eq!(kind, Kind::Election);
        ElectionMessage::decode(reader)
    }

    #[test]
    fn every_election_message_fits_a_datagram_and_round_trips() {
        for message in all() {
            let bytes = message.encode();
            assert!(bytes.len() <= PACKET_BYTES_MIN, "{} bytes", bytes.len());
            assert_eq!(decode(&bytes).as_ref(), Ok(&message));
            for end in 2..bytes.len() {
                assert_eq!(decode(&bytes[..end]), Err(WireError::Form), "{message:?} cut at {end}");
            }
        }
    }

    #[test]
    fn lease_times_of_steps_are_noticed() {
        // Two messages have a step, with times: a request to accept it, and the answer of who has accepted it.
        assert_eq!(all().iter().filter(|message| message.has_times()).count(), 2);
    }

    #[test]
    fn election_names_and_lease_times_over_limit_are_refused() {
        let lease = LEASE_TIME_MAX + Duration::from_millis(1);
        let call = |lease, request| {
            ElectionMessage::Request(Call { hash: 1, request_id: 1, lease, request }).encode()
        };
        let too_long = Request::Watch { name: "n".repeat(ELECTION_NAME_BYTES_MAX + 1) };
        assert_eq!(decode(&call(LEASE_TIME_MAX, too_long)), Err(WireError::Form));
        assert_eq!(
            decode(&call(LEASE_TIME_MAX, Request::Watch { name: String::new() })),
            Err(WireError::Form)
        );
        assert_eq!(decode(&call(lease, Request::Renew { session: 1 })), Err(WireError::Form));
    }
}
