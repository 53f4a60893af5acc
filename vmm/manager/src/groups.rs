//! Groups of guests, by name: each claims memory as one guest does, and divides what it gets among its members.
//!
//! A group is there for as long as it has members: the first guest that names it brings its limits along.

use allocator::{Group, GroupId, GuestId, Pages, Reservation, Shares};

use super::member::Member;
use levy_protocol::link::{GroupLimits, NAME_RULE, is_name};

/// All groups of a host. A group's [`GroupId`] is its place in the list and changes when groups before it go.
#[derive(Debug, Clone, Default)]
pub struct Groups {
    names: Vec<String>,
    groups: Vec<Group>,
}

/// Why a group cannot be as it was asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GroupError {
    /// A name that cannot be typed or shown.
    #[error("{0:?} is not a group name: it takes {NAME_RULE}")]
    Name(String),
    /// Shares of zero.
    #[error("group {0}: shares must be at least 1 (low is 500, normal 1000, high 2000)")]
    Shares(String),
    /// More guaranteed than allowed.
    #[error("group {name}: min of {min} is more than its max of {max}")]
    Contradiction {
        /// The group.
        name: String,
        /// Its minimum.
        min: Pages,
        /// Its maximum.
        max: Pages,
    },
    /// Its members' minimums do not fit its maximum.
    #[error(
        "group {name}: its members' minimums would be {minimums}, its max is {max}; raise its max or lower their minimums"
    )]
    Full {
        /// The group.
        name: String,
        /// The members' minimums together.
        minimums: Pages,
        /// Its maximum.
        max: Pages,
    },
    /// What is promised to it does not fit, though the guest that brings it would.
    #[error(
        "group {name}: {missing} of memory are missing for its min of {min}; lower that, or the mins of guests and \
         other groups"
    )]
    Unfit {
        /// The group.
        name: String,
        /// Its minimum.
        min: Pages,
        /// What is missing for it.
        missing: Pages,
    },
}

impl Groups {
    /// As the allocator sees them.
    pub fn list(&self) -> &[Group] {
        &self.groups
    }

    /// Names and limits.
    pub fn named(&self) -> impl DoubleEndedIterator<Item = (&str, &Group)> + ExactSizeIterator {
        self.names.iter().map(String::as_str).zip(&self.groups)
    }

    /// The name of the group at `id`.
    pub fn name(&self, id: GroupId) -> Option<&str> {
        self.names.get(id.get() as usize).map(String::as_str)
    }

    /// The group called `name`.
    pub fn find(&self, name: &str) -> Option<GroupId> {
        let place = self.names.iter().position(|known| known == name)?;
        u32::try_from(place).ok().map(GroupId::new)
    }

    /// The group at `id` in the words of the link.
    pub fn limits(&self, id: GroupId) -> Option<GroupLimits> {
        let (name, group) = self.named().nth(id.get() as usize)?;
        let bytes = |pages: Pages| pages.get().saturating_mul(4096);
        Some(GroupLimits {
            name: name.to_owned(),
            shares: group.shares.get(),
            min: bytes(group.min),
            max: (group.max < Pages::LIMIT).then(|| bytes(group.max)),
        })
    }

    /// The group that `wanted` names; as `wanted` describes it where it is new.
    ///
    /// # Errors
    /// When it cannot be called or limited so; nothing has changed then.
    pub(super) fn enter(&mut self, wanted: &GroupLimits) -> Result<GroupId, GroupError> {
        if let Some(known) = self.find(&wanted.name) {
            return Ok(known);
        }
        if !is_name(&wanted.name) {
            return Err(GroupError::Name(wanted.name.clone()));
        }
        let group = Group {
            min: whole_pages(wanted.min),
            max: wanted.max.map_or(Pages::LIMIT, whole_pages),
            ..Group::new(Shares::new(wanted.shares))
        };
        check(&wanted.name, &group)?;
        let id = GroupId::new(self.groups.len() as u32);
        self.names.push(wanted.name.clone());
        self.groups.push(group);
        Ok(id)
    }

    /// Puts `group` in the place of the one at `id` and returns that.
    ///
    /// # Errors
    /// When the new limits contradict themselves; nothing has changed then.
    pub(super) fn replace(&mut self, id: GroupId, group: Group) -> Result<Group, GroupError> {
        let place = id.get() as usize;
        check(&self.names[place], &group)?;
        Ok(std::mem::replace(&mut self.groups[place], group))
    }

    /// Forgets groups without members. Those behind them move up, and their members with them.
    pub(super) fn prune(&mut self, members: &mut [Member]) {
        let mut used = vec![false; self.groups.len()];
        for group in members.iter().filter_map(|member| member.limits.group) {
            used[group.get() as usize] = true;
        }
        let mut next = 0;
        let moved: Vec<GroupId> = used
            .iter()
            .map(|&used| {
                next += u32::from(used);
                GroupId::new(next.saturating_sub(1))
            })
            .collect();
        for group in members
            .iter_mut()
            .filter_map(|member| member.limits.group.as_mut())
        {
            *group = moved[group.get() as usize];
        }
        let (mut names, mut groups) = (used.iter(), used.iter());
        self.names.retain(|_| names.next() == Some(&true));
        self.groups.retain(|_| groups.next() == Some(&true));
    }

    /// What is promised to groups beyond their members' own minimums, `minimums` by group.
    pub(super) fn promised(
        &self,
        minimums: impl Iterator<Item = (Option<GroupId>, Pages)>,
    ) -> Vec<Reservation> {
        let sums = self.sums(minimums);
        let beyond = self
            .groups
            .iter()
            .zip(sums)
            .map(|(group, sum)| group.min.less(sum));
        beyond
            .map(|pages| Reservation {
                guest: GuestId::new(u64::MAX),
                min: pages,
                max: pages,
                overhead: Pages::ZERO,
            })
            .collect()
    }

    /// Whether members with `minimums` fit their groups' maximums.
    ///
    /// # Errors
    /// [`GroupError::Full`] for the first group in which they do not.
    pub(super) fn fit(
        &self,
        minimums: impl Iterator<Item = (Option<GroupId>, Pages)>,
    ) -> Result<(), GroupError> {
        let sums = self.sums(minimums);
        match self.named().zip(sums).find(|((_, group), sum)| *sum > group.max) {
            None => Ok(()),
            Some(((name, group), minimums)) => Err(GroupError::Full {
                name: name.to_owned(),
                minimums,
                max: group.max,
            }),
        }
    }

    fn sums(&self, minimums: impl Iterator<Item = (Option<GroupId>, Pages)>) -> Vec<Pages> {
        let mut sums = vec![Pages::ZERO; self.groups.len()];
        for (group, min) in minimums {
            if let Some(sum) = group.and_then(|id| sums.get_mut(id.get() as usize)) {
                *sum += min;
            }
        }
        sums
    }
}

fn check(name: &str, group: &Group) -> Result<(), GroupError> {
    if group.shares.get() == 0 {
        return Err(GroupError::Shares(name.to_owned()));
    }
    if group.min > group.max {
        return Err(GroupError::Contradiction {
            name: name.to_owned(),
            min: group.min,
            max: group.max,
        });
    }
    Ok(())
}

/// Bytes as pages, rounded up; more than anything may have counts as that limit.
pub(super) fn whole_pages(bytes: u64) -> Pages {
    Pages::new(bytes.div_ceil(4096)).min(Pages::LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::Limits;

    fn wanted(name: &str, min: u64, max: Option<u64>) -> GroupLimits {
        GroupLimits {
            name: name.into(),
            shares: 1000,
            min,
            max,
        }
    }

    fn member(id: u64, group: GroupId) -> Member {
        let limits = Limits {
            min: Pages::new(10),
            max: Pages::new(20),
            shares: Shares::NORMAL,
            group: Some(group),
        };
        Member::new(GuestId::new(id), limits)
    }

    #[test]
    fn members_stay_in_their_group_when_another_goes() {
        let mut groups = Groups::default();
        let a = groups.enter(&wanted("a", 0, None)).unwrap();
        let b = groups.enter(&wanted("b", 0, None)).unwrap();
        assert_eq!(
            groups.enter(&wanted("a", 4096, None)),
            Ok(a),
            "who comes later joins"
        );
        let mut members = [member(0, b)];
        groups.prune(&mut members);
        assert_eq!(groups.find("a"), None);
        assert_eq!(members[0].limits.group, groups.find("b"));
        assert_eq!(groups.name(members[0].limits.group.unwrap()), Some("b"));
        groups.prune(&mut []);
        assert!(groups.list().is_empty());
    }

    #[test]
    fn a_groups_minimum_counts_beyond_its_members() {
        let mut groups = Groups::default();
        let a = groups.enter(&wanted("a", 25 * 4096, None)).unwrap();
        let promised = |minimums: &[u64]| {
            let of_a = minimums.iter().map(|&pages| (Some(a), Pages::new(pages)));
            groups.promised(of_a)[0].min.get()
        };
        assert_eq!(
            (promised(&[10]), promised(&[10, 10]), promised(&[10, 20])),
            (15, 5, 0)
        );
    }

    #[test]
    fn limits_that_cannot_be_are_refused() {
        let mut groups = Groups::default();
        let refused = |groups: &mut Groups, wanted| groups.enter(&wanted).unwrap_err().to_string();
        assert!(refused(&mut groups, wanted("a b", 0, None)).contains("not a group name"));
        assert!(refused(&mut groups, wanted("a", 8192, Some(4096))).contains("max"));
        let none = GroupLimits {
            shares: 0,
            ..wanted("a", 0, None)
        };
        assert!(refused(&mut groups, none).contains("shares"));
        assert!(groups.list().is_empty());
        let a = groups.enter(&wanted("a", 0, Some(15 * 4096))).unwrap();
        let minimums = [(Some(a), Pages::new(10)), (Some(a), Pages::new(10))];
        assert!(groups.fit(minimums.into_iter().take(1)).is_ok());
        assert!(
            groups
                .fit(minimums.into_iter())
                .unwrap_err()
                .to_string()
                .contains("members' minimums")
        );
    }
}
