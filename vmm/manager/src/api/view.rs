//! The manager's state as the API shows it.

use std::collections::BTreeMap;

use allocator::{Bound, Fleet, GroupId, Pages, State};
use page_share::LocalManager;

use super::types::{
    AboveLimitView, ActivityView, BalloonStatistics, BalloonView, ConnectionsView, CountersView, DomainView,
    GroupView, GuestView, HostView, LimitsView, MemoryView, RoundsView, SettingsView, SpentView, TargetView,
    WaitingView,
};
use crate::above_limit::AboveLimit;
use crate::host::Host;
use crate::member::Member;
use crate::picture::Picture;
use crate::registry::ManagedProcess;
use crate::standstill::Standstill;
use crate::statistics::Rounds;
use levy_protocol::link::BalloonReport;

/// Pages in a MiB.
const MIB_PAGES: u64 = 256;

/// The manager as a whole.
pub fn host(host: &Host, picture: &Picture) -> HostView {
    let (settings, round) = (&picture.settings, picture.round.as_ref());
    let sum = |of: fn(&Member) -> Pages| bytes(picture.guests.iter().map(|(member, _)| of(member)).sum());
    let domains = picture.domains.iter();
    HostView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        settings: SettingsView {
            budget_bytes: bytes(settings.budget),
            tax_percent: settings.tax.part() * 100.0,
            rebalance_seconds: settings.rebalance.as_secs_f64(),
        },
        state: round.map(|round| State::name(round.state).to_owned()),
        free_bytes: round.map(|round| round.free.saturating_mul(4096)),
        reserve_bytes: round.map_or(0, |round| bytes(round.reserve)),
        goal_bytes: bytes(picture.goal),
        spent: SpentView {
            guests_bytes: sum(|member| member.held),
            pools_bytes: bytes(picture.spent.pools),
            old_pools_bytes: bytes(picture.old_pools),
            manager_bytes: bytes(picture.spent.manager),
        },
        guests: picture.guests.len() as u64,
        promised_bytes: sum(|member| member.limits.max),
        minimums_bytes: sum(|member| member.limits.min),
        domains: domains
            .map(|(name, manager)| (name.clone(), domain(manager)))
            .collect(),
        groups: groups(picture),
        doors: connections(picture),
        rounds: rounds(&picture.rounds),
        unkept: host.unkept(),
        above_limits: above_limits(picture),
        waiting_for_memory: waiting_for_memory(picture),
        cpu_us: cpu_us(),
    }
}

fn above_limits(picture: &Picture) -> Vec<AboveLimitView> {
    let guests = picture.guests.iter();
    let above = guests.filter_map(|(member, process)| {
        Some(AboveLimitView {
            guest: process.name.clone(),
            held_bytes: bytes(member.held),
            limit_bytes: bytes(member.sent_limit()?),
            reason: AboveLimit::of(member, process)?.to_string(),
        })
    });
    above.collect()
}

fn waiting_for_memory(picture: &Picture) -> Vec<WaitingView> {
    let guests = picture.guests.iter();
    let waiting = guests.filter_map(|(member, process)| {
        Some(WaitingView {
            guest: process.name.clone(),
            held_bytes: bytes(member.held),
            limit_bytes: bytes(member.sent_limit()?),
            waited_seconds: member.waited().as_secs_f64(),
            reason: Standstill::of(member, process)?.to_string(),
        })
    });
    waiting.collect()
}

fn rounds(rounds: &Rounds) -> RoundsView {
    let (gaps, work) = (rounds.gaps.spread(), rounds.work.spread());
    RoundsView {
        count: rounds.count,
        gap_p50_us: gaps.p50,
        gap_p99_us: gaps.p99,
        gap_max_us: gaps.max,
        work_p50_us: work.p50,
        work_max_us: work.max,
    }
}

/// All groups.
pub(super) fn groups(picture: &Picture) -> BTreeMap<String, GroupView> {
    let groups = picture.groups.named().enumerate();
    groups
        .map(|(place, (name, group))| {
            let id = Some(GroupId::new(place as u32));
            let members = || {
                let guests = picture.guests.iter();
                guests.filter(move |(member, _)| member.limits.group == id)
            };
            let view = GroupView {
                min_bytes: bytes(group.min),
                max_bytes: (group.max < Pages::LIMIT).then(|| bytes(group.max)),
                shares: group.shares.get(),
                guests: members().map(|(_, process)| process.name.clone()).collect(),
                held_bytes: bytes(members().map(|(member, _)| member.held).sum()),
                unkept: None,
            };
            (name.to_owned(), view)
        })
        .collect()
}

fn connections(picture: &Picture) -> ConnectionsView {
    let (counters, times) = (picture.counters, picture.handling.spread());
    ConnectionsView {
        reports: counters.reports,
        impossible: counters.impossible,
        refused: counters.refused,
        cut_offs: counters.cut_offs,
        crowded: counters.crowded,
        starved: counters.starved,
        intruders: counters.intruders,
        handling_p50_us: times.p50,
        handling_p99_us: times.p99,
        handling_max_us: times.max,
    }
}

fn cpu_us() -> u64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec.unsigned_abs() * 1_000_000 + used.tv_nsec.unsigned_abs() / 1000
}

fn domain(manager: &LocalManager) -> DomainView {
    let figures = manager.with(|domain| (domain.sizes(), domain.counters()));
    let (sizes, counters) = figures.unwrap_or_default();
    DomainView {
        guests: sizes.guests,
        pool_pages: sizes.pool_pages,
        references: sizes.references,
        hints: sizes.hints,
        metadata_bytes: sizes.metadata_bytes(),
        reports: counters.reports,
        answered_shared: counters.answered_shared,
        published: counters.published,
        refused: counters.refused_full + counters.refused_mismatch + counters.refused_collision,
        invalid_calls: counters.invalid_calls,
        punched: counters.punched,
    }
}

/// Every guest, or those called `name`.
pub fn guests(picture: &Picture, name: Option<&str>) -> Vec<GuestView> {
    // Without a fleet there is no plan either, and everything else can still be said.
    let fleet = picture.fleet.as_ref();
    let guests = picture.guests.iter().enumerate();
    guests
        .filter(|(_, (_, process))| name.is_none_or(|name| process.name == name))
        .map(|(index, (member, process))| {
            let target = fleet.and_then(|fleet| target(picture, fleet, index));
            let group = member.limits.group.and_then(|id| picture.groups.name(id));
            GuestView {
                group: group.map(str::to_owned),
                ..guest(member, process, target)
            }
        })
        .collect()
}

fn guest(member: &Member, process: &ManagedProcess, target: Option<TargetView>) -> GuestView {
    let Member { limits, report, .. } = member;
    GuestView {
        name: process.name.clone(),
        pid: process.id.pid,
        phase: process.phase,
        protocol: process.protocol,
        connected: process.connected,
        age_seconds: process.since.elapsed().as_secs_f64(),
        report_age_seconds: member.age.as_secs_f64(),
        control: process.control.clone(),
        domain: process.sharing.clone(),
        group: None,
        fleet: process.fleet.clone(),
        limits: LimitsView {
            min_bytes: bytes(limits.min),
            max_bytes: bytes(limits.max),
            shares: limits.shares.get(),
        },
        memory: memory(member),
        held_bytes: bytes(member.held),
        overhead_bytes: bytes(member.overhead()),
        target,
        activity: ActivityView {
            fraction: member.estimate.fraction,
            low: member.estimate.interval.low,
            high: member.estimate.interval.high,
            active_bytes: bytes(member.estimate.active),
            written_bytes_per_second: report.written_per_second.saturating_mul(4096),
        },
        balloon: report.balloon.as_ref().map(|balloon| BalloonView {
            asked_bytes: bytes(member.balloon_asked),
            target_bytes: balloon.target_pages.saturating_mul(4096),
            actual_bytes: balloon.actual_pages.saturating_mul(4096),
            responsive: !balloon.unresponsive,
        }),
        limit_bytes: member.given().map(bytes),
        growth_credit_pages: growth_credit(member, process),
        counters: CountersView {
            cow_breaks: report.cow_breaks,
            pages_in: report.pages_in,
            engine_cpu_us: report.engine_cpu_us,
            cut_offs: process.penalty.cut_offs,
        },
        unkept: None,
    }
}

/// What is left to a guest whose growth is counted.
fn growth_credit(member: &Member, process: &ManagedProcess) -> Option<u64> {
    let limit = member.standing.gated.then_some(process.orders.limit_bytes)??;
    Some((limit / 4096).saturating_sub(member.held.get()))
}

fn memory(member: &Member) -> MemoryView {
    let pages = member.pages();
    let size = |pages: u64| pages.saturating_mul(4096);
    MemoryView {
        private_bytes: size(pages.private),
        shared_bytes: size(pages.shared),
        zero_bytes: size(pages.zero),
        compressed_bytes: size(pages.compressed),
        store_bytes: bytes(member.store()),
        swapped_bytes: size(pages.swapped),
        ballooned_bytes: size(pages.ballooned),
        empty_bytes: size(pages.empty),
    }
}

/// The target of the guest at `index`; none where guests came or went after the plan was made.
fn target(picture: &Picture, fleet: &Fleet, index: usize) -> Option<TargetView> {
    let claim = fleet.claims().get(index)?;
    let why = picture.plan.explain_claim(fleet, claim)?;
    Some(TargetView {
        private_bytes: bytes(why.target.pages),
        size_bytes: bytes(why.target.size),
        taxed_bytes: bytes(why.target.taxed),
        bound: match why.target.bound {
            Bound::Maximum => "maximum",
            Bound::Minimum => "minimum",
            Bound::Shares => "shares",
            Bound::Tax => "tax",
        }
        .to_owned(),
        explanation: picture.names.put_into(&why.to_string()),
    })
}

/// A balloon as Firecracker shows it.
pub fn statistics(balloon: &BalloonReport) -> BalloonStatistics {
    BalloonStatistics {
        target_pages: balloon.target_pages,
        actual_pages: balloon.actual_pages,
        target_mib: balloon.target_pages / MIB_PAGES,
        actual_mib: balloon.actual_pages / MIB_PAGES,
        age_ms: balloon
            .statistics_age_seconds
            .map(|seconds| (seconds * 1000.0) as u64),
        guest: balloon.statistics.clone(),
    }
}

fn bytes(pages: Pages) -> u64 {
    pages.get().saturating_mul(4096)
}
