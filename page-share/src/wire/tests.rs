//! Every message there and back, and bytes that are none.

use std::borrow::Cow;

use super::reply::{NO_SLOT, REFUSALS, REFUSED};
use super::*;
use crate::hash::{DomainKey, Sketch};
use crate::page::{Gfn, GuestId, Page, PoolGeneration, Slot};
use crate::port::{Answer, Invalid, Offer, Publication, Report};
use proptest::prelude::*;

fn split(bytes: &[u8], direction: Direction) -> Result<(Header, &[u8]), WireError> {
    let (header, payload) = bytes.split_first_chunk().expect("a whole header");
    Ok((Header::parse(*header, direction)?, payload))
}

fn request_survives(request: &Request<'_>) {
    let mut bytes = Vec::new();
    request.encode(&mut bytes);
    let (header, payload) = split(&bytes, Direction::Request).unwrap();
    assert_eq!(&Request::decode(header, payload).unwrap(), request);
    assert!(split(&bytes, Direction::Reply).is_err());
}

fn reply_survives(reply: &Reply<'_>) {
    let mut bytes = Vec::new();
    reply.encode(&mut bytes);
    let (header, payload) = split(&bytes, Direction::Reply).unwrap();
    assert_eq!(&Reply::decode(header, payload).unwrap(), reply);
    assert!(split(&bytes, Direction::Request).is_err());
}

#[test]
fn every_message_survives_the_way() {
    let slots: Vec<_> = (0..9).map(Slot::new).collect();
    let reports: Vec<_> = (0..3)
        .map(|i| Report {
            gfn: Gfn::new(i),
            sketch: Sketch::new(u64::MAX - u64::from(i)),
        })
        .collect();
    request_survives(&Request::Hello(7));
    request_survives(&Request::Restate(u32::MAX));
    request_survives(&Request::Held(Cow::Borrowed(&slots)));
    request_survives(&Request::Report(Cow::Borrowed(&reports)));
    let pages: Vec<Page> = (0..3).map(|i| [i; PAGE_SIZE]).collect();
    request_survives(&Request::Publish(Cow::Borrowed(&reports), &pages));
    request_survives(&Request::Offers);
    request_survives(&Request::Withdraw(Cow::Owned(vec![Gfn::new(9)])));
    request_survives(&Request::Release(PoolGeneration::new(5), Cow::Borrowed(&slots)));
    request_survives(&Request::Claim(PoolGeneration::new(6), Cow::Borrowed(&slots)));
    reply_survives(&Reply::Welcome(Welcome {
        guest: GuestId::new(u16::MAX),
        generation: PoolGeneration::new(u64::MAX),
        key: DomainKey::from_bytes(std::array::from_fn(|i| i as u8)),
        slot_limit: 1 << 20,
    }));
    let answers = [
        Answer::Noted,
        Answer::Publish,
        Answer::Shared(Slot::new(NO_SLOT - 1)),
    ];
    reply_survives(&Reply::Answers(Cow::Borrowed(&answers)));
    let mut results = vec![Publication::Noted, Publication::Granted(Slot::new(0))];
    results.extend(REFUSALS.map(Publication::Refused));
    reply_survives(&Reply::Publications(Cow::Owned(results)));
    let offer = Offer {
        gfn: Gfn::new(1),
        slot: Slot::new(2),
    };
    reply_survives(&Reply::Offers(Cow::Owned(vec![offer; 3])));
    reply_survives(&Reply::Done);
    reply_survives(&Reply::Stale(PoolGeneration::new(1), PoolGeneration::new(2)));
    reply_survives(&Reply::Failed(-12));
    for invalid in [
        Invalid::Batch { count: 1, limit: 2 },
        Invalid::Gfn {
            gfn: Gfn::new(1),
            pages: 2,
        },
        Invalid::NotHeld(Slot::new(3)),
    ] {
        reply_survives(&Reply::Invalid(invalid));
    }
}

#[test]
fn a_refusals_number_is_its_place_in_the_table() {
    for (number, refusal) in REFUSALS.into_iter().enumerate() {
        assert_eq!(refusal as usize, number);
    }
    assert!(REFUSED - (REFUSALS.len() as u32) >= NO_SLOT);
}

#[test]
fn lengths_are_bounded_before_anything_is_read() {
    let header = |length: u32, version, kind, zero| {
        let [a, b, c, d] = length.to_le_bytes();
        Header::parse([a, b, c, d, version, kind, zero, 0], Direction::Request)
    };
    assert_eq!(header(0, VERSION, Kind::Offers as u8, 0).unwrap().length(), 0);
    assert_eq!(header(0, 9, Kind::Offers as u8, 0), Err(WireError::Version(9)));
    assert!(header(0, VERSION, Kind::Offers as u8, 1).is_err());
    assert!(
        header(0, VERSION, Kind::Done as u8, 0).is_err(),
        "the other direction"
    );
    assert!(header(0, VERSION, 99, 0).is_err());
    assert!(header(u32::MAX, VERSION, Kind::Report as u8, 0).is_err());
    assert!(header(13, VERSION, Kind::Report as u8, 0).is_err());
    assert!(header(12 * REPORT_BATCH as u32, VERSION, Kind::Report as u8, 0).is_ok());
    assert!(header(12 * REPORT_BATCH as u32 + 12, VERSION, Kind::Report as u8, 0).is_err());
    assert!(header(7, VERSION, Kind::Release as u8, 0).is_err());
}

proptest! {
    #[test]
    fn whatever_decodes_encodes_to_the_same_bytes(
        kind in prop::sample::select(REQUESTS.iter().chain(&REPLIES).map(|kind| *kind as u8).collect::<Vec<_>>()),
        payload in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..100),
    ) {
        let mut bytes = vec![payload.len() as u8, 0, 0, 0, VERSION, kind, 0, 0];
        bytes.extend(&payload);
        let mut again = Vec::new();
        if let Ok((header, payload)) = split(&bytes, Direction::Request) {
            if let Ok(request) = Request::decode(header, payload) {
                request.encode(&mut again);
                prop_assert_eq!(&again, &bytes);
            }
        } else if let Ok((header, payload)) = split(&bytes, Direction::Reply)
            && let Ok(reply) = Reply::decode(header, payload)
        {
            reply.encode(&mut again);
            prop_assert_eq!(&again, &bytes);
        }
    }
}
