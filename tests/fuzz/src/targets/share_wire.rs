//! The manager's socket: whatever decodes has exactly one encoding, and decoding needs no more memory than the bytes.

use page_share::wire::{Direction, HEADER, Header, Hello, Reply, Request, WireError};
use page_share::{Gfn, PAGE_SIZE, Sketch, Slot};

use crate::{Signature, Target};

pub(crate) const TARGET: Target = Target {
    name: "share-wire",
    about: "messages between a guest's process and the manager, both directions",
    longest: 3 * PAGE_SIZE,
    seeds,
    worker: || Box::new(run),
};

/// The first byte chooses the direction; the rest is a stream of messages.
fn run(input: &[u8]) -> Signature {
    let (&choice, mut stream) = input.split_first().unwrap_or((&0, &[]));
    let direction = if choice & 1 == 0 {
        Direction::Request
    } else {
        Direction::Reply
    };
    let mut counts = [0u64; 6];
    let mut shape = 0;
    while let Some((head, rest)) = stream.split_first_chunk::<HEADER>() {
        let header = match Header::parse(*head, direction) {
            Ok(header) => header,
            Err(error) => {
                counts[reason(error)] += 1;
                break;
            }
        };
        let Some((payload, after)) = rest.split_at_checked(header.length()) else {
            counts[4] += 1;
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
                counts[5] += 1;
                shape |= 1 << (head[5] % 64);
            }
            Err(error) => counts[reason(error)] += 1,
        }
        stream = after;
    }
    Signature::of(counts.into_iter().chain((0..64).map(|bit| shape >> bit & 1)))
}

fn reason(error: WireError) -> usize {
    match error {
        WireError::Version(_) => 0,
        WireError::Header(_) => 1,
        WireError::Length { .. } => 2,
        WireError::Value { .. } => 3,
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let report = page_share::port::Report {
        gfn: Gfn::new(1),
        sketch: Sketch::new(2),
    };
    let page = [7; PAGE_SIZE];
    let slots = [Slot::new(1), Slot::new(2)];
    let requests = [
        Request::Hello(Hello {
            pages: 9,
            before: None,
            held: 2,
        }),
        Request::Held(slots[..].into()),
        Request::Report([report; 3][..].into()),
        Request::Offers,
        Request::Withdraw([Gfn::new(3)][..].into()),
        Request::Release(page_share::PoolGeneration::new(5), slots[..].into()),
        Request::Publish([report][..].into(), std::slice::from_ref(&page)),
    ]
    .map(|request| {
        let mut bytes = Vec::from([0]);
        request.encode(&mut bytes);
        bytes
    });
    use page_share::port::{Answer, Invalid, Offer, Publication, Refusal};
    let offer = Offer {
        gfn: Gfn::new(1),
        slot: Slot::new(2),
    };
    let replies = [
        Reply::Answers([Answer::Noted, Answer::Publish, Answer::Shared(Slot::new(1))][..].into()),
        Reply::Publications([Publication::Refused(Refusal::Collision)][..].into()),
        Reply::Offers([offer][..].into()),
        Reply::Done,
        Reply::Invalid(Invalid::NotHeld(Slot::new(1))),
        Reply::Failed(12),
    ]
    .map(|reply| {
        let mut bytes = Vec::from([1]);
        reply.encode(&mut bytes);
        bytes
    });
    requests.into_iter().chain(replies).collect()
}
