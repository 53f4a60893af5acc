//! The project's own commands: `cargo xtask check|test|package|deny|bench|chaos|mutate|nested|demo`.
#![forbid(unsafe_code)]

mod artifact;
mod bench;
mod chaos;
mod check;
mod committed;
mod demo;
mod deny;
mod guest_system;
mod interrupt;
mod metadata;
mod mutate;
mod nested;
mod package;
mod place;
mod test;
mod watched;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "check, test, bench and demonstrate Levy")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure something; each bench runs its rival in the same run and writes JSON with --json FILE
    Bench(bench::BenchArgs),
    /// Kill, stall, starve and mislead managers and guests' processes, and check every byte; JSON with --json FILE
    Chaos(chaos::ChaosArgs),
    /// Formatting, lints, docs, layers, dependencies
    Check,
    /// Do the tests notice when the program is wrong? Tries small changes of it, one by one
    Mutate(mutate::MutateArgs),
    /// Licences, bans, sources and advisories by cargo-deny, which must be installed
    Deny(deny::DenyArgs),
    /// Package the libraries, and build and test what is in the packages outside the workspace
    Package,
    /// Three Debian guests under load, from a clean clone
    Demo(demo::DemoArgs),
    /// Every test of the workspace, real guests included
    Test(test::TestArgs),
    /// Build the guest images, or reuse cached ones
    Images(guest_images::cli::Args),
    /// Run a command inside an emulated KVM host, for machines without hardware virtualization
    Nested(nested::NestedArgs),
    /// The inner end of `nested`; started by the nested host itself
    #[command(hide = true)]
    NestedInside,
}

fn main() -> ExitCode {
    let done = interrupt::watch().and_then(|()| dispatch(Cli::parse().command));
    match done {
        Ok(code) => code,
        Err(error) if error.is::<interrupt::Interrupted>() => {
            eprintln!("xtask: interrupted");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Chaos(args) => chaos::run(&args),
        Command::Check => check::run().map(|()| ExitCode::SUCCESS),
        Command::Mutate(args) => mutate::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Deny(args) => deny::run(&args),
        Command::Package => package::run().map(|()| ExitCode::SUCCESS),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Images(args) => Ok(guest_images::cli::run(&args).map(|()| ExitCode::SUCCESS)?),
        Command::Nested(args) => nested::run(&args),
        Command::NestedInside => nested::inside::run().map(|()| ExitCode::SUCCESS),
    }
}
