//! Workloads: each runs in a process of its own and reports on standard output.

mod churn;
mod dbench;
mod file;
mod fill;
mod http;
mod idle;
mod nginx;
mod pages;
mod pattern;
mod pgbench;
mod reader;
mod redis;
mod resp;
mod run;
mod service;
mod toucher;

use std::process::ExitCode;

use levy_agent::{Command, Workload};

use run::Run;

/// The workload in a JSON object as PID 1 writes it.
pub(crate) fn parse(json: &str) -> Result<Workload, String> {
    let mut fields: serde_json::Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    fields["id"] = 0.into();
    match Command::parse(&fields.to_string())?.action {
        levy_agent::Action::Run(workload) => Ok(workload),
        other => Err(format!("no workload: {other:?}")),
    }
}

/// Runs a workload to its verdict; the exit status agrees with it.
pub(crate) fn main(id: Option<u64>, workload: &Workload) -> ExitCode {
    let mut run = Run::begin(id, workload);
    let outcome = match workload {
        Workload::Idle(parameters) => idle::run(parameters, &mut run),
        Workload::Toucher(parameters) => toucher::run(parameters, &mut run),
        Workload::Fill(parameters) => fill::run(parameters, &mut run),
        Workload::Churn(parameters) => churn::run(parameters, &mut run),
        Workload::File(parameters) => file::run(parameters, &mut run),
        Workload::Reader(parameters) => reader::run(parameters, &mut run),
        Workload::Redis(parameters) => redis::run(parameters, &mut run),
        Workload::Nginx(parameters) => nginx::run(parameters, &mut run),
        Workload::Pgbench(parameters) => pgbench::run(parameters, &mut run),
        Workload::Dbench(parameters) => dbench::run(parameters, &mut run),
    };
    run.end(outcome)
}
