//! Whether one more guest fits.

use std::fmt;

use crate::{GuestId, Pages};

/// What a guest needs to be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Who.
    pub guest: GuestId,
    /// Pages it always gets.
    pub min: Pages,
    /// Its configured size.
    pub max: Pages,
    /// What the host needs for it besides: its process, page tables, device buffers.
    pub overhead: Pages,
}

/// What the host can promise.
///
/// Promises are kept whatever the guests do: every min and overhead in memory, every max - min in swap or compressed
/// memory, and with them the reserve for sharing to come apart.
///
/// ```
/// use allocator::{Admission, GuestId, Pages, Reservation};
/// let host = Admission {
///     memory: Pages::from_mib(1024),
///     backing: Pages::from_mib(512),
///     break_reserve: Pages::from_mib(64),
/// };
/// let asked = Reservation {
///     guest: GuestId::new(1),
///     min: Pages::from_mib(128),
///     max: Pages::from_mib(768),
///     overhead: Pages::from_mib(32),
/// };
/// let error = host.check(&[], &asked).unwrap_err();
/// assert!(error.to_string().contains("max of 163840 pages (640.0 MiB) would fit"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Memory for guests and their overhead: what the host has less what it needs itself and the free memory it aims
    /// for.
    pub memory: Pages,
    /// Swap, and what compression can be relied on to hold beyond the memory it takes.
    pub backing: Pages,
    /// Memory kept for sharing to come apart ([`Overbooking::reserve`](crate::Overbooking::reserve)).
    pub break_reserve: Pages,
}

/// What is left after an admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// Memory not promised.
    pub memory: Pages,
    /// Swap and compression not promised.
    pub backing: Pages,
}

impl Admission {
    /// Whether `applicant` fits in addition to the `admitted`; returns what is left then.
    ///
    /// # Errors
    /// [`AdmissionError::Invalid`] for limits that contradict themselves, [`AdmissionError::Refused`] with what is
    /// missing and what would fit.
    pub fn check(
        &self,
        admitted: &[Reservation],
        applicant: &Reservation,
    ) -> Result<Headroom, AdmissionError> {
        let Reservation {
            guest,
            min,
            max,
            overhead,
        } = *applicant;
        if min > max || max == Pages::ZERO || max > Pages::LIMIT {
            return Err(AdmissionError::Invalid { guest, min, max });
        }
        let left = self.left(admitted);
        let (memory, backing) = (min + overhead, max - min);
        if memory <= left.memory && backing <= left.backing {
            return Ok(Headroom {
                memory: left.memory - memory,
                backing: left.backing - backing,
            });
        }
        Err(AdmissionError::Refused(Refusal {
            applicant: *applicant,
            missing_memory: memory.less(left.memory),
            missing_backing: backing.less(left.backing),
            break_reserve: self.break_reserve,
            fitting: fitting(applicant, left),
            higher_min: higher_min(applicant, left),
        }))
    }

    /// What the admitted leave; nothing where they hold more than there is. Of memory and of backing at most half of
    /// [`Pages::LIMIT`] counts each, so that what was admitted is never more than a plan can number.
    #[must_use]
    pub fn left(&self, admitted: &[Reservation]) -> Headroom {
        let memory: Pages = admitted.iter().map(|guest| guest.min + guest.overhead).sum();
        let backing: Pages = admitted.iter().map(|guest| guest.max - guest.min).sum();
        Headroom {
            memory: self.memory.less(self.break_reserve).min(MOST).less(memory),
            backing: self.backing.min(MOST).less(backing),
        }
    }
}

/// Most memory, and most backing, that is promised: together what a fleet may add up to.
const MOST: Pages = Pages::new(Pages::LIMIT.get() / 2);

/// The largest limits up to those asked for that fit into `left`.
fn fitting(asked: &Reservation, left: Headroom) -> Option<(Pages, Pages)> {
    if asked.overhead > left.memory {
        return None;
    }
    let min = asked.min.min(left.memory - asked.overhead);
    let max = asked.max.min(min + left.backing);
    (max > Pages::ZERO).then_some((min, max))
}

/// The min that moves what backing cannot hold into memory, where memory has room for it.
fn higher_min(asked: &Reservation, left: Headroom) -> Option<Pages> {
    let min = asked.max - left.backing;
    (min > asked.min && min + asked.overhead <= left.memory).then_some(min)
}

/// Why a guest was not admitted, and what would change that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was asked for.
    pub applicant: Reservation,
    /// Memory missing for its min and overhead.
    pub missing_memory: Pages,
    /// Swap or compression missing for its max - min.
    pub missing_backing: Pages,
    /// The part of memory kept for sharing to come apart.
    pub break_reserve: Pages,
    /// The largest min and max, up to those asked for, that would fit now; none if not a page would.
    pub fitting: Option<(Pages, Pages)>,
    /// The min at which the whole max would fit, where too little backing is all that is wrong: more of it in memory.
    pub higher_min: Option<Pages>,
}

/// Why a guest was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdmissionError {
    /// Its limits contradict themselves.
    Invalid {
        /// The guest.
        guest: GuestId,
        /// Its min.
        min: Pages,
        /// Its max.
        max: Pages,
    },
    /// It does not fit.
    Refused(Refusal),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            applicant,
            missing_memory,
            missing_backing,
            break_reserve,
            ..
        } = self;
        write!(f, "{} does not fit:", applicant.guest)?;
        if *missing_memory > Pages::ZERO {
            write!(
                f,
                " {missing_memory} of memory are missing for its min of {} and overhead of {} ({break_reserve} are kept \
                 for sharing to come apart);",
                applicant.min, applicant.overhead
            )?;
        }
        if *missing_backing > Pages::ZERO {
            write!(
                f,
                " {missing_backing} of swap or compressed memory are missing for max - min of {};",
                applicant.max - applicant.min
            )?;
        }
        match self.fitting {
            Some((min, max)) => write!(f, " a min of {min} and a max of {max} would fit")?,
            None => write!(f, " nothing is left for it")?,
        }
        if let Some(min) = self.higher_min {
            write!(f, ", or this max with a min of {min}")?;
        }
        if *missing_memory > Pages::ZERO {
            write!(
                f,
                ", or lower other guests' mins by {missing_memory}, or stop some"
            )?;
        }
        if *missing_backing > Pages::ZERO {
            write!(f, ", or add {missing_backing} of swap")?;
        }
        Ok(())
    }
}

impl fmt::Display for AdmissionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid { guest, min, max } => write!(
                f,
                "{guest}: min of {min} and max of {max}: max must be at least 1 page and min, and at most {}",
                Pages::LIMIT
            ),
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl std::error::Error for AdmissionError {}
