//! What a virtio-blk request says, before anything is done about it.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::disk::SECTOR;
use crate::virtio::{Chain, Malformed};

/// Bytes of the serial number a disk answers with.
pub(super) const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// The answer at the end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Ok => VIRTIO_BLK_S_OK as u8,
            Self::IoError => VIRTIO_BLK_S_IOERR as u8,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP as u8,
        }
    }
}

/// A range of the disk, checked to be inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) at: u64,
    pub(super) len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read(Extent),
    Write(Extent),
    Flush,
    Identify,
    /// A well-formed request that gets this answer and nothing else.
    Refuse(Status),
}

impl Request {
    /// Reads the header of `chain` and leaves its cursors at the data. More data than `largest` is refused.
    pub(super) fn parse(chain: &mut Chain<'_>, disk_len: u64, largest: usize) -> Result<Self, Malformed> {
        let header: [u8; 16] = chain.read_array()?;
        // The last writable byte is the status; there is no answering without it.
        let data_room = chain.writable().checked_sub(1).ok_or(Malformed::TooShort)?;
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        let extent = |len| extent(sector, len, disk_len).filter(|_| len <= largest);
        Ok(match kind {
            VIRTIO_BLK_T_IN => extent(data_room).map_or(Self::Refuse(Status::IoError), Self::Read),
            VIRTIO_BLK_T_OUT => extent(chain.readable()).map_or(Self::Refuse(Status::IoError), Self::Write),
            VIRTIO_BLK_T_FLUSH => Self::Flush,
            VIRTIO_BLK_T_GET_ID => Self::Identify,
            _ => Self::Refuse(Status::Unsupported),
        })
    }
}

fn extent(sector: u64, len: usize, disk_len: u64) -> Option<Extent> {
    let at = sector.checked_mul(SECTOR)?;
    let end = at.checked_add(len as u64)?;
    let whole = (len as u64).is_multiple_of(SECTOR);
    (whole && end <= disk_len).then_some(Extent { at, len })
}
