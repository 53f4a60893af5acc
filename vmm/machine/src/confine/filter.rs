//! Rules as programs for the kernel.

use std::collections::{BTreeMap, HashMap};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::role::Role;
use super::rules::{self, Rule, When};
use super::{ConfineError, Mode, Sockets};

/// The filters of all roles, made while a process may still do anything.
#[derive(Debug)]
pub(super) struct Filters {
    programs: HashMap<Role, Vec<BpfProgram>>,
    sockets: Sockets,
}

/// What the compiler says.
type Compiled<T> = Result<T, seccompiler::BackendError>;

impl Filters {
    pub(super) fn compile(mode: Mode, sockets: Sockets) -> Result<Self, ConfineError> {
        let programs = Role::ALL.into_iter().map(|role| {
            let mut tables = rules::of(role).to_vec();
            if role == Role::Main && sockets == Sockets::Ours {
                tables.push(rules::SOCKETS);
            }
            let programs = compile(&tables.concat(), mode).map_err(|error| ConfineError::Rules {
                role: role.name(),
                what: error.to_string(),
            })?;
            Ok((role, programs))
        });
        Ok(Self {
            programs: programs.collect::<Result<_, _>>()?,
            sockets,
        })
    }

    pub(super) fn sockets(&self) -> Sockets {
        self.sockets
    }

    /// Puts the calling thread under the filters of `role`.
    pub(super) fn apply(&self, role: Role) -> Result<(), seccompiler::Error> {
        let programs = self.programs.get(&role).map_or(&[][..], Vec::as_slice);
        programs
            .iter()
            .try_for_each(|program| seccompiler::apply_filter(program))
    }
}

/// Most restrictive last: a filter must still allow the next one to be set.
fn compile(rules: &[Rule], mode: Mode) -> Compiled<Vec<BpfProgram>> {
    let mut programs = Vec::new();
    for refused in rules.iter().filter(|rule| rule.refuse.is_some()) {
        let errno = refused.refuse.unwrap_or_default().unsigned_abs();
        let calls = BTreeMap::from([(refused.call, Vec::new())]);
        programs.push(program(calls, SeccompAction::Allow, SeccompAction::Errno(errno))?);
    }
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in rules.iter().filter(|rule| !rule.when.is_empty()) {
        calls.entry(rule.call).or_default().push(conditions(rule.when)?);
    }
    // No conditions at all: allowed whatever the arguments are.
    for rule in rules.iter().filter(|rule| rule.when.is_empty()) {
        calls.insert(rule.call, Vec::new());
    }
    let forbidden = match mode {
        Mode::Log => SeccompAction::Log,
        Mode::On | Mode::Off => SeccompAction::Trap,
    };
    programs.push(program(calls, forbidden, SeccompAction::Allow)?);
    Ok(programs)
}

fn program(
    calls: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Compiled<BpfProgram> {
    SeccompFilter::new(calls, otherwise, listed, TargetArch::x86_64)?.try_into()
}

fn conditions(when: &[When]) -> Compiled<SeccompRule> {
    use SeccompCmpArgLen::{Dword, Qword};
    let conditions = when.iter().map(|when| match *when {
        When::Is(argument, value) => SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, value),
        When::Bits(argument, mask, value) => {
            SeccompCondition::new(argument, Qword, SeccompCmpOp::MaskedEq(mask), value)
        }
        When::OwnProcess(argument) => {
            let own = u64::from(std::process::id());
            SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, own)
        }
    });
    SeccompRule::new(conditions.collect::<Compiled<_>>()?)
}
