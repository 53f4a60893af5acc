//! Connections: what was sent and not read yet, in both directions.

use std::collections::VecDeque;

use page_share::port::{Answer, Offer, PortError, Publication, Report};
use page_share::{Attachment, Domain, Gfn, PoolGeneration, Slot};

use super::contents::{self, Content};

/// What a guest's process says.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Hello,
    Restate(Vec<Slot>),
    Report(Vec<Report>),
    /// Pages and the contents that are sent as theirs.
    Publish(Vec<Report>, Vec<Content>),
    Offers,
    Withdraw(Vec<Gfn>),
    Release(PoolGeneration, Vec<Slot>),
    Claim(PoolGeneration, Vec<Slot>),
}

/// The manager does what it is asked.
pub(crate) fn call(domain: &mut Domain, from: Attachment, request: &Request) -> Result<Reply, PortError> {
    match request {
        Request::Hello => Ok(Reply::Done),
        Request::Restate(held) => domain.restate(from, held).map(|()| Reply::Done),
        Request::Report(reports) => {
            let mut answers = Vec::new();
            domain.report(from, reports, &mut answers)?;
            Ok(Reply::Answers(answers))
        }
        Request::Publish(reports, bytes) => {
            let bytes: Vec<_> = bytes.iter().map(|&content| contents::page(content)).collect();
            let mut results = Vec::new();
            domain.publish(from, reports, &bytes, &mut results)?;
            Ok(Reply::Publications(results))
        }
        Request::Offers => {
            let mut offers = Vec::new();
            domain.offers(from, &mut offers)?;
            Ok(Reply::Offers(offers))
        }
        Request::Withdraw(gfns) => domain.withdraw(from, gfns).map(|()| Reply::Done),
        Request::Release(generation, slots) => domain.release(from, *generation, slots).map(|()| Reply::Done),
        Request::Claim(generation, slots) => {
            let mut answers = Vec::new();
            domain.claim(from, *generation, slots, &mut answers)?;
            Ok(Reply::Answers(answers))
        }
    }
}

/// What the manager answers.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Welcome(PoolGeneration),
    Answers(Vec<Answer>),
    Publications(Vec<Publication>),
    Offers(Vec<Offer>),
    Done,
    /// The connection is over.
    End,
}

/// The life of one process: a process that is started again is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Life(pub(crate) u32);

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) number: u64,
    /// Whose process opened it.
    pub(crate) life: Life,
    /// What the manager gave it when it said hello.
    pub(crate) attachment: Option<Attachment>,
    /// Whether a hostile process has it, too.
    pub(crate) forged: bool,
    /// The manager is another one than it was opened to.
    pub(crate) closed: bool,
    pub(crate) requests: VecDeque<Request>,
    pub(crate) replies: VecDeque<Reply>,
    /// The last few that were read.
    pub(crate) past: Vec<Request>,
}

impl Connection {
    pub(crate) fn open(number: u64, life: Life) -> Self {
        Self {
            number,
            life,
            attachment: None,
            forged: false,
            closed: false,
            requests: VecDeque::from([Request::Hello]),
            replies: VecDeque::new(),
            past: Vec::new(),
        }
    }
}
