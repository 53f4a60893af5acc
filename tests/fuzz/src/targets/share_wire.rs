//! The manager's socket: whatever decodes has exactly one encoding, and decoding needs no more memory than the bytes.

use std::borrow::Cow;

use page_share::port::{Answer, Invalid, Offer, Publication, Refusal, Report};
use page_share::wire::{Direction, HEADER, Header, Reply, Request, Welcome, WireError};
use page_share::{DomainKey, Gfn, GuestId, PAGE_SIZE, Page, PoolGeneration, Sketch, Slot};

use crate::{Signature, Target};

pub(crate) const TARGET: Target = Target {
    name: "share-wire",
    about: "messages between a guest's process and the manager, both directions",
    longest: 3 * PAGE_SIZE,
    seeds,
    worker: || Box::new(run),
};

/// What became of the messages of an input.
#[derive(Debug, Default, Clone, Copy)]
struct WireCounts {
    /// Refused: version, header, length, value; cut short.
    refused: [u64; 5],
    /// Understood, by kind.
    requests: [u64; REQUESTS],
    replies: [u64; REPLIES],
}

/// Kinds of requests and of replies.
const REQUESTS: usize = 9;
const REPLIES: usize = 8;

/// The kind of the first reply; that of the first request is 1.
const FIRST_REPLY: u8 = 129;

fn run(input: &[u8]) -> Signature {
    let seen = observe(input);
    let once = |count: u64| u64::from(count > 0);
    let understood: u64 = seen.requests.iter().chain(&seen.replies).sum();
    let kinds = seen.requests.into_iter().chain(seen.replies).map(once);
    Signature::of(seen.refused.into_iter().chain([understood]).chain(kinds))
}

/// The first byte chooses the direction; the rest is a stream of messages.
fn observe(input: &[u8]) -> WireCounts {
    let (&choice, mut stream) = input.split_first().unwrap_or((&0, &[]));
    let direction = if choice & 1 == 0 {
        Direction::Request
    } else {
        Direction::Reply
    };
    let mut seen = WireCounts::default();
    while let Some((head, rest)) = stream.split_first_chunk::<HEADER>() {
        let header = match Header::parse(*head, direction) {
            Ok(header) => header,
            Err(error) => {
                seen.refused[reason(error)] += 1;
                break;
            }
        };
        let Some((payload, after)) = rest.split_at_checked(header.length()) else {
            seen.refused[4] += 1;
            break;
        };
        let mut again = Vec::new();
        let outcome = match direction {
            Direction::Request => Request::decode(header, payload).map(|request| request.encode(&mut again)),
            Direction::Reply => Reply::decode(header, payload).map(|reply| reply.encode(&mut again)),
        };
        match outcome {
            Ok(()) => {
                assert_eq!(
                    again,
                    stream[..HEADER + payload.len()],
                    "one encoding for each message"
                );
                match direction {
                    Direction::Request => seen.requests[usize::from(head[5] - 1)] += 1,
                    Direction::Reply => seen.replies[usize::from(head[5] - FIRST_REPLY)] += 1,
                }
            }
            Err(error) => seen.refused[reason(error)] += 1,
        }
        stream = after;
    }
    seen
}

fn reason(error: WireError) -> usize {
    match error {
        WireError::Version(_) => 0,
        WireError::Header(_) => 1,
        WireError::Length { .. } => 2,
        _ => 3,
    }
}

/// One of each message, and each once more with other contents where it has variants.
fn seeds() -> Vec<Vec<u8>> {
    let report = Report {
        gfn: Gfn::new(1),
        sketch: Sketch::new(2),
    };
    let page: Page = [7; PAGE_SIZE];
    let (generation, slots) = (PoolGeneration::new(5), [Slot::new(1), Slot::new(2)]);
    let requests = [
        Request::Hello(9),
        Request::Restate(2),
        Request::Held(slots[..].into()),
        Request::Report(vec![report; 3].into()),
        Request::Offers,
        Request::Withdraw(vec![Gfn::new(3)].into()),
        Request::Release(generation, slots[..].into()),
        Request::Claim(generation, slots[..].into()),
        Request::Publish(vec![report].into(), std::slice::from_ref(&page)),
    ];
    let requests = requests.iter().map(|request| {
        let mut bytes = Vec::from([0]);
        request.encode(&mut bytes);
        bytes
    });
    let replies = replies();
    let replies = replies.iter().map(|reply| {
        let mut bytes = Vec::from([1]);
        reply.encode(&mut bytes);
        bytes
    });
    requests.chain(replies).collect()
}

fn replies() -> Vec<Reply<'static>> {
    let slot = Slot::new(1);
    let (gfn, offered) = (Gfn::new(1), Slot::new(2));
    let welcome = Welcome {
        guest: GuestId::new(3),
        generation: PoolGeneration::new(5),
        key: DomainKey::from_bytes([9; 32]),
        slot_limit: 1 << 14,
    };
    let refusals = [Refusal::PoolFull, Refusal::SketchMismatch, Refusal::Collision];
    let mut results = vec![Publication::Noted, Publication::Granted(slot)];
    results.extend(refusals.map(Publication::Refused));
    vec![
        Reply::Welcome(welcome),
        Reply::Answers(Cow::Owned(vec![
            Answer::Noted,
            Answer::Publish,
            Answer::Shared(slot),
        ])),
        Reply::Publications(Cow::Owned(results)),
        Reply::Offers(Cow::Owned(vec![Offer { gfn, slot: offered }])),
        Reply::Done,
        Reply::Stale(PoolGeneration::new(5), PoolGeneration::new(6)),
        Reply::Invalid(Invalid::Batch { count: 5, limit: 4 }),
        Reply::Invalid(Invalid::Gfn { gfn, pages: 1 }),
        Reply::Invalid(Invalid::NotHeld(slot)),
        Reply::Failed(12),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate::inputs;

    #[test]
    fn every_message_and_every_refusal_comes_up() {
        let mut total = WireCounts::default();
        for input in inputs(seeds(), TARGET.longest).take(20_000) {
            let seen = observe(&input);
            let sums = total
                .refused
                .iter_mut()
                .chain(&mut total.requests)
                .chain(&mut total.replies);
            let counts = seen.refused.iter().chain(&seen.requests).chain(&seen.replies);
            sums.zip(counts).for_each(|(sum, count)| *sum += count);
        }
        println!("{total:?}");
        let counts = total.refused.iter().chain(&total.requests).chain(&total.replies);
        assert!(counts.into_iter().all(|&count| count > 0), "{total:?}");
    }
}
