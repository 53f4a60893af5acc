//! One package file: what the signed index says of it, whether its bytes agree, and unpacking it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::cache::hex;
use crate::tool::Tool;
use crate::{Error, Result};

const DPKG_DEB: Tool = Tool {
    program: "dpkg-deb",
    package: "dpkg",
};

/// A package as the signed index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version, with epoch.
    pub version: String,
    /// The file's name in apt's download directory.
    pub(super) file: String,
    /// The file's SHA-256, hexadecimal.
    pub(super) sha256: String,
}

impl Package {
    /// Reads a line of `apt-get --print-uris`: `'ADDRESS' NAME_VERSION_ARCH.deb SIZE SHA256:HEX`.
    pub(super) fn from_apt(line: &str) -> Result<Self> {
        Self::parse(line).ok_or_else(|| Error::AptAnswer {
            line: line.to_owned(),
        })
    }

    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.strip_prefix('\'')?.split_once("' ")?;
        let mut fields = rest.split(' ');
        let (file, _size, hash) = (fields.next()?, fields.next()?, fields.next()?);
        let sha256 = hash.strip_prefix("SHA256:").filter(|digits| digits.len() == 64)?;
        let mut parts = file.strip_suffix(".deb")?.split('_');
        let (name, version, _arch) = (parts.next()?, parts.next()?, parts.next()?);
        if file.contains('/') || parts.next().is_some() {
            return None;
        }
        Some(Self {
            name: name.to_owned(),
            version: version.replace("%3a", ":"),
            file: file.to_owned(),
            sha256: sha256.to_owned(),
        })
    }

    /// Checks the file in `downloads` against the signed hash; a wrong file is removed.
    pub(super) fn verify(&self, downloads: &Path) -> Result<()> {
        let path = downloads.join(&self.file);
        let mut file = File::open(&path).map_err(Error::file("open", &path))?;
        let mut hash = Sha256::new();
        io::copy(&mut file, &mut Hashing(&mut hash)).map_err(Error::file("read", &path))?;
        let found = hex(hash.finalize().as_slice());
        if found == self.sha256 {
            return Ok(());
        }
        fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        Err(Error::Checksum {
            file: self.file.clone(),
            expected: self.sha256.clone(),
            found,
        })
    }

    /// Unpacks the package's files below `into`, after checking them. Runs none of its scripts.
    pub(super) fn unpack(&self, downloads: &Path, into: &Path) -> Result<()> {
        self.verify(downloads)?;
        let mut dpkg = DPKG_DEB.command();
        dpkg.arg("--extract").arg(downloads.join(&self.file)).arg(into);
        DPKG_DEB.run(&format!("unpacking {}", self.name), &mut dpkg)?;
        Ok(())
    }
}

/// A hash as a writer.
struct Hashing<'a>(&'a mut Sha256);

impl io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn line() -> String {
        format!("'http://m.example/p/q%2bds_1.deb' qemu-x_1%3a10.0+ds-2_amd64.deb 3 SHA256:{HASH_OF_ABC}")
    }

    #[test]
    fn a_line_of_apt_is_understood() {
        let package = Package::from_apt(&line()).unwrap();
        assert_eq!(
            (package.name.as_str(), package.version.as_str()),
            ("qemu-x", "1:10.0+ds-2")
        );
    }

    #[test]
    fn other_lines_are_refused() {
        let weak = line().replace("SHA256:", "MD5Sum:");
        let outside = line().replace("qemu-x_1", "../qemu-x_1");
        for bad in ["", "E: broken", weak.as_str(), outside.as_str()] {
            assert!(Package::from_apt(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_damaged_file_is_refused_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let package = Package::from_apt(&line()).unwrap();
        let path = dir.path().join(&package.file);
        fs::write(&path, "abc").unwrap();
        package.verify(dir.path()).unwrap();
        fs::write(&path, "abd").unwrap();
        assert!(matches!(package.verify(dir.path()), Err(Error::Checksum { .. })));
        assert!(!path.exists());
    }
}
