//! `levy`: run many Linux guests on one host.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use levy_machine::process::say;
use levy_protocol::error_chain;

/// Run many Linux guests on one KVM host.
#[derive(Parser)]
#[command(name = "levy", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say what this machine can run, what is missing and what to do about it
    Doctor(levy::doctor::Args),
    /// Build the guest images, or reuse cached ones
    Images(guest_images::cli::Args),
    /// Manage the memory of many guests
    Host(Box<levy::cli::HostArgs>),
    /// Run one or more guests, each in a process of its own
    Run(Box<levy::cli::RunArgs>),
    /// Run the guests of a fleet file
    Up(levy::cli::UpArgs),
    /// Stop the guests of a fleet file
    Down(levy::cli::DownArgs),
    /// List the guests of a manager
    Ls(levy::cli::LsArgs),
    /// Show a manager's memory, or one guest's: what it has, what it should have, and why
    Stats(levy::cli::StatsArgs),
    /// Change a guest's limits, or the manager's settings, while guests run
    Set(levy::cli::SetArgs),
    /// Shut down guests
    Stop(levy::cli::StopArgs),
    /// Pause the virtual CPUs of guests
    Pause(levy::cli::PauseArgs),
    /// Resume paused guests
    Resume(levy::cli::ResumeArgs),
    /// Measure what guests cost and gain together on this machine
    Bench(Box<levy::cli::BenchArgs>),
    /// Run one guest in this process (what `levy run` starts for each guest)
    Vmm(Box<levy::cli::VmmArgs>),
}

fn main() -> ExitCode {
    if let Err(error) = levy_machine::process::outlive_file_limits() {
        say(format!("cannot hold back a signal: {error}"));
        return ExitCode::FAILURE;
    }
    if let Err(error) = levy_protocol::raise_stack() {
        say(error);
        return ExitCode::FAILURE;
    }
    run()
}

/// Not part of `main`, which has to do with a smaller stack.
#[inline(never)]
fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    match cli.command {
        Command::Doctor(args) => status(levy::doctor::run(args)),
        Command::Images(args) => status(guest_images::cli::run(&args).map(|()| 0)),
        Command::Host(args) => ExitCode::from(args.run()),
        Command::Run(args) => ExitCode::from(args.run()),
        Command::Up(args) => ExitCode::from(args.run()),
        Command::Down(args) => ExitCode::from(args.run()),
        Command::Ls(args) => ExitCode::from(args.run()),
        Command::Stats(args) => ExitCode::from(args.run()),
        Command::Set(args) => ExitCode::from(args.run()),
        Command::Stop(args) => ExitCode::from(args.run()),
        Command::Pause(args) => ExitCode::from(args.run()),
        Command::Resume(args) => ExitCode::from(args.run()),
        Command::Bench(args) => ExitCode::from(args.run()),
        Command::Vmm(args) => ExitCode::from(args.run()),
    }
}

/// Prints what is wrong with the command line, or the help or version that was asked for.
fn explain(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    if !error.use_stderr()
        && let Err(error) = levy::shown(printed)
    {
        say(error_chain(&error));
        return ExitCode::FAILURE;
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
}

fn status(result: Result<u8, impl Error>) -> ExitCode {
    result.map_or_else(
        |error| {
            say(error_chain(&error));
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}
