//! `cargo xtask package`: the libraries as others get them, built and tested outside the workspace.

mod outside;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::interrupt;
use crate::metadata::{Metadata, Package};
use outside::Outside;

/// What each package must bring besides its sources.
const FILES: &[&str] = &["Cargo.toml", "LICENSE", "README.md", "src/lib.rs"];

/// Packages all libraries, unpacks them into a temporary folder, and tests each there as the only one that is asked
/// for: without features its library builds, with all of them its tests and examples pass.
pub(crate) fn run() -> Result<()> {
    let metadata = Metadata::read()?;
    let packages: Vec<&Package> = metadata.published().collect();
    let build = metadata.root().join("target/package");
    make(&packages, &build)?;
    let outside = Outside::new(metadata.root(), &packages)?;
    for package in &packages {
        unpack(&archive(&build, package), outside.folder())?;
        let folder = outside.folder().join(directory(package));
        if let Some(missing) = FILES.iter().find(|file| !folder.join(file).is_file()) {
            bail!("the package of {} has no {missing}", package.name);
        }
    }
    for package in &packages {
        eprintln!("package: {} {} ...", package.name, package.version);
        outside.cargo(package, &["check", "--lib"])?;
        outside.cargo(package, &["test", "--all-features"])?;
    }
    println!(
        "package: {} libraries built and tested outside the workspace",
        packages.len()
    );
    Ok(())
}

/// The folder that a package unpacks to.
fn directory(package: &Package) -> String {
    format!("{}-{}", package.name, package.version)
}

fn archive(build: &Path, package: &Package) -> PathBuf {
    build
        .join("package")
        .join(format!("{}.crate", directory(package)))
}

/// Makes the archives of all `packages` in `build`, together: they need each other, and no registry has them yet.
fn make(packages: &[&Package], build: &Path) -> Result<()> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "package",
        "--locked",
        "--allow-dirty",
        "--no-verify",
        "--target-dir",
    ]);
    cargo.arg(build);
    for package in packages {
        cargo.args(["--package", &package.name]);
    }
    run_to_end(&mut cargo)
}

fn unpack(archive: &Path, folder: &Path) -> Result<()> {
    run_to_end(
        Command::new("tar")
            .arg("--extract")
            .arg("--file")
            .arg(archive)
            .arg("--directory")
            .arg(folder),
    )
}

fn run_to_end(command: &mut Command) -> Result<()> {
    interrupt::check()?;
    let program = command.get_program().display().to_string();
    let status = command
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    interrupt::check()?;
    if !status.success() {
        let args: Vec<_> = command.get_args().map(|arg| arg.display().to_string()).collect();
        bail!("`{program} {}` ended with {status}", args.join(" "));
    }
    Ok(())
}
