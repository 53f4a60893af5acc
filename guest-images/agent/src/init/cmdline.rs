//! The kernel's command line, as far as it concerns the agent.

use std::fs;

/// What the kernel's command line says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cmdline {
    /// `root=`: the device of the root disk.
    pub(crate) root: Option<String>,
    /// `ro`: mount it read-only.
    pub(crate) read_only: bool,
    /// `rootfstype=`, else ext4.
    pub(crate) root_type: Option<String>,
    /// `levy.ip=ADDRESS/BITS`: the address of the first network card.
    pub(crate) address: Option<String>,
    /// `levy.gateway=ADDRESS`.
    pub(crate) gateway: Option<String>,
    /// `levy.hostname=NAME`.
    pub(crate) hostname: Option<String>,
    /// `levy.run=NAME`: a workload to run at once.
    pub(crate) run: Option<String>,
    /// `levy.args=KEY=VALUE,...`: its parameters.
    pub(crate) args: String,
}

impl Cmdline {
    /// Reads /proc/cmdline; unreadable counts as empty.
    pub(crate) fn of_kernel() -> Self {
        Self::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        for word in text.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let value = Some(value.to_owned()).filter(|value| !value.is_empty());
            match key {
                "root" => parsed.root = value,
                "ro" => parsed.read_only = true,
                "rw" => parsed.read_only = false,
                "rootfstype" => parsed.root_type = value,
                "levy.ip" => parsed.address = value,
                "levy.gateway" => parsed.gateway = value,
                "levy.hostname" => parsed.hostname = value,
                "levy.run" => parsed.run = value,
                "levy.args" => parsed.args = value.unwrap_or_default(),
                _ => {}
            }
        }
        parsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_wins_and_foreign_words_are_ignored() {
        let cmdline = Cmdline::parse(
            "quiet root=/dev/vda ro rw root=/dev/vdb levy.run=fill levy.args=mib=3,seconds=4 x=y\n",
        );
        assert_eq!(cmdline.root.as_deref(), Some("/dev/vdb"));
        assert!(!cmdline.read_only);
        assert_eq!(cmdline.run.as_deref(), Some("fill"));
        assert_eq!(cmdline.args, "mib=3,seconds=4");
        assert_eq!(Cmdline::parse("root="), Cmdline::default());
    }
}
