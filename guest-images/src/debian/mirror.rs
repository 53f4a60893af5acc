//! Where Debian's archive is: learned from this machine's apt, or told by `LEVY_MIRROR`.

use std::path::Path;

use crate::tool::Tool;
use crate::{Error, Result};

/// Where Debian 12 and 13 keep the keys that sign the archive.
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const APT_GET: Tool = Tool {
    program: "apt-get",
    package: "apt",
};

/// The releases by which an apt source is known to be Debian's own archive.
const RELEASES: &[&str] = &[
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "unstable",
    "testing",
    "stable",
    "oldstable",
];

/// A part of the archive. Guests run bookworm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// The release.
    Bookworm,
    /// Its updates between point releases.
    BookwormUpdates,
    /// Its security updates; newer stable kernels come from here too.
    BookwormSecurity,
    /// Newer versions built for it.
    BookwormBackports,
}

impl Suite {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Bookworm,
        Self::BookwormUpdates,
        Self::BookwormSecurity,
        Self::BookwormBackports,
    ];

    /// The suite's name in the archive.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::BookwormUpdates => "bookworm-updates",
            Self::BookwormSecurity => "bookworm-security",
            Self::BookwormBackports => "bookworm-backports",
        }
    }
}

/// The archive's two addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    main: String,
    security: String,
}

impl Mirror {
    /// `LEVY_MIRROR` if set, else what this machine's apt uses for Debian itself.
    ///
    /// # Errors
    /// `LEVY_MIRROR` is not an address, apt is missing, or its configuration names no Debian archive.
    pub fn of_this_machine() -> Result<Self> {
        match std::env::var("LEVY_MIRROR") {
            Ok(value) if !value.is_empty() => Self::from_address(&value),
            _ => {
                let format = "$(RELEASE) $(REPO_URI)";
                let mut apt = APT_GET.command();
                apt.args(["indextargets", "--format", format, "Created-By: Packages"]);
                let listed = APT_GET.run("asking apt for its sources", &mut apt)?;
                Self::from_sources(&listed)
            }
        }
    }

    /// An archive at `address`; its security part is beside it, with `-security` added to the name.
    fn from_address(address: &str) -> Result<Self> {
        let known = ["http://", "https://", "file:/"]
            .iter()
            .any(|scheme| address.starts_with(scheme));
        if !known || address.contains(|c: char| c.is_whitespace() || c == '[') {
            return Err(Error::BadMirror {
                value: address.to_owned(),
            });
        }
        let main = address.trim_end_matches('/').to_owned();
        let security = format!("{main}-security");
        Ok(Self { main, security })
    }

    /// Picks Debian's own archive out of lines of "RELEASE ADDRESS".
    fn from_sources(listed: &str) -> Result<Self> {
        let sources = || listed.lines().filter_map(|line| line.trim().split_once(' '));
        let main = sources()
            .find(|(release, _)| RELEASES.contains(release))
            .map(|(_, address)| address)
            .ok_or(Error::NoMirror)?;
        let mut mirror = Self::from_address(main)?;
        let of_security = |release: &str| {
            let name = release
                .strip_suffix("-security")
                .or_else(|| release.strip_suffix("/updates"));
            name.is_some_and(|name| RELEASES.contains(&name))
        };
        if let Some((_, address)) = sources().find(|(release, _)| of_security(release)) {
            mirror.security = address.trim_end_matches('/').to_owned();
        }
        Ok(mirror)
    }

    /// The address that has `suite`.
    pub fn address(&self, suite: Suite) -> &str {
        match suite {
            Suite::BookwormSecurity => &self.security,
            _ => &self.main,
        }
    }

    /// apt's list of sources for all suites, each bound to Debian's own keys.
    pub(crate) fn sources_list(&self) -> Result<String> {
        if !Path::new(KEYRING).exists() {
            return Err(Error::NoKeyring { path: KEYRING.into() });
        }
        Ok(Suite::ALL
            .into_iter()
            .map(|suite| self.source(suite) + "\n")
            .collect())
    }

    /// A line of apt's sources, bound to Debian's own keys.
    pub(crate) fn source(&self, suite: Suite) -> String {
        let (address, name) = (self.address(suite), suite.name());
        format!("deb [arch=amd64 signed-by={KEYRING}] {address} {name} main")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_is_found_among_other_sources() {
        let listed = "nodistro https://one.example/node\n\
                      trixie http://two.example/debian/\n\
                      trixie-security http://three.example/security/\n";
        let mirror = Mirror::from_sources(listed).unwrap();
        assert_eq!(mirror.address(Suite::Bookworm), "http://two.example/debian");
        assert_eq!(
            mirror.address(Suite::BookwormBackports),
            "http://two.example/debian"
        );
        assert_eq!(
            mirror.address(Suite::BookwormSecurity),
            "http://three.example/security"
        );
    }

    #[test]
    fn security_is_beside_the_archive_when_not_listed() {
        let mirror = Mirror::from_sources("bookworm http://two.example/debian/").unwrap();
        assert_eq!(
            mirror.address(Suite::BookwormSecurity),
            "http://two.example/debian-security"
        );
    }

    #[test]
    fn no_debian_source_is_told_with_the_cure() {
        let error = Mirror::from_sources("noble http://one.example/ubuntu/").unwrap_err();
        assert!(error.to_string().contains("LEVY_MIRROR"), "{error}");
    }

    #[test]
    fn a_mirror_that_is_no_address_is_refused() {
        for value in [
            "debian",
            "ftp://x/debian",
            "http://x y",
            "http://x [trusted=yes]",
            "",
        ] {
            assert!(Mirror::from_address(value).is_err(), "{value:?}");
        }
    }
}
