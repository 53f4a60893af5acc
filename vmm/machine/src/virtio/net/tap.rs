//! The host's side of a network card: a tap interface.
#![allow(unsafe_code)]
// UNSAFETY: the ioctls that attach to an interface, give it an address and bring it up; no crate of ours wraps them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::str::FromStr;

use super::device::FramePort;

/// An IPv4 address with the length of its network prefix, as in `10.0.3.1/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of the network part, 1 to 30.
    pub prefix: u8,
}

impl Subnet {
    /// The network mask.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX << (32 - u32::from(self.prefix)))
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an address with a prefix length; write it like 10.0.3.1/24");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| wrong())?;
        match prefix.parse() {
            Ok(prefix @ 1..=30) => Ok(Self { address, prefix }),
            _ => Err(wrong()),
        }
    }
}

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum TapError {
    /// The name is not an interface name.
    #[error("tap {0:?}: an interface name has 1 to 15 characters without spaces and slashes")]
    Name(String),
    /// There is no such interface.
    #[error(
        "tap {0}: no such interface in this network namespace; create it (ip tuntap add dev {0} mode tap && ip link \
         set {0} up) or let levy create it with create=on"
    )]
    Missing(String),
    /// The interface exists although it was to be created.
    #[error("tap {0}: exists already; leave out create=on to use it, or take another name")]
    Exists(String),
    /// The kernel has no tap support or forbids it.
    #[error(
        "tap {name}: cannot {what}; this needs /dev/net/tun (modprobe tun) and CAP_NET_ADMIN, or a tap that belongs to you"
    )]
    Host {
        name: String,
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// An attached tap. A created one goes away with the process, however that ends.
#[derive(Debug)]
pub struct Tap {
    file: File,
}

impl Tap {
    /// Attaches to the tap called `name` in the network namespace of the process.
    ///
    /// # Errors
    /// When there is none, or when it cannot be attached to.
    pub fn take(name: &str) -> Result<Self, TapError> {
        if !exists(name)? {
            return Err(TapError::Missing(name.to_owned()));
        }
        Self::attach(name)
    }

    /// Creates a tap called `name`, gives its host side the address `host` if any, and brings it up.
    ///
    /// # Errors
    /// When the name is taken or the kernel refuses.
    pub fn create(name: &str, host: Option<Subnet>) -> Result<Self, TapError> {
        if exists(name)? {
            return Err(TapError::Exists(name.to_owned()));
        }
        let tap = Self::attach(name)?;
        let failed = |what| {
            move |source| TapError::Host {
                name: name.to_owned(),
                what,
                source,
            }
        };
        let socket = control_socket().map_err(failed("open a control socket"))?;
        if let Some(subnet) = host {
            for (request, address) in [
                (libc::SIOCSIFADDR, subnet.address),
                (libc::SIOCSIFNETMASK, subnet.mask()),
            ] {
                let request_body = with_address(name, address);
                call(socket.as_raw_fd(), request, &request_body).map_err(failed("set its address"))?;
            }
        }
        let mut up = request(name);
        up.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        call(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &up).map_err(failed("bring it up"))?;
        Ok(tap)
    }

    fn attach(name: &str) -> Result<Self, TapError> {
        let failed = |what| {
            move |source| TapError::Host {
                name: name.to_owned(),
                what,
                source,
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(failed("open /dev/net/tun"))?;
        let mut attach = request(name);
        attach.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        call(file.as_raw_fd(), libc::TUNSETIFF, &attach).map_err(failed("attach to it"))?;
        Ok(Self { file })
    }
}

impl FramePort for Tap {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.file.read(into)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.file.write(frame).map(|_| ())
    }

    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn exists(name: &str) -> Result<bool, TapError> {
    let plain = |c: char| c.is_ascii_graphic() && c != '/';
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.chars().all(plain) || name.starts_with('.') {
        return Err(TapError::Name(name.to_owned()));
    }
    // SIOCGIFINDEX rather than /sys, which may show another network namespace.
    let host = |source| TapError::Host {
        name: name.to_owned(),
        what: "look for it",
        source,
    };
    let socket = control_socket().map_err(host)?;
    match call(socket.as_raw_fd(), libc::SIOCGIFINDEX, &request(name)) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(e) => Err(host(e)),
    }
}

fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointers; a descriptor that it returns is ours alone.
    unsafe {
        match libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// An interface request that names `name`, which [`exists`] has checked to fit.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain integers and unions of them, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(name.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from as libc::c_char;
    }
    request
}

fn with_address(name: &str, address: Ipv4Addr) -> libc::ifreq {
    let mut request = request(name);
    let mut data = [0; 14];
    // sockaddr_in: two bytes of port, then the address in network order.
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_addr = libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    };
    request
}

fn call(fd: RawFd, number: libc::c_ulong, request: &libc::ifreq) -> io::Result<()> {
    let mut request = *request;
    // SAFETY: every number used in this file takes a pointer to an ifreq, reads it and at most writes it back.
    match unsafe { libc::ioctl(fd, number, &raw mut request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
