//! The rival: an inflate queue as most peers serve it, one system call for each frame number.

use anyhow::Result;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes};

use crate::arena::{Arena, Memory};

pub(crate) struct Peer {
    memory: Memory,
    queue: Queue,
}

impl Peer {
    pub(crate) fn new(memory: Memory, queue: Queue) -> Self {
        Self { memory, queue }
    }

    pub(crate) fn handle_inflate(&mut self, arena: &Arena) -> Result<()> {
        while let Some(chain) = self.queue.iter(&*self.memory)?.next() {
            let head = chain.head_index();
            for descriptor in chain {
                for at in (0..u64::from(descriptor.len())).step_by(4) {
                    let frame: u32 = self.memory.read_obj(descriptor.addr().unchecked_add(at))?;
                    arena.drop_frame(frame)?;
                }
            }
            self.queue.add_used(&*self.memory, head, 0)?;
        }
        self.queue.enable_notification(&*self.memory)?;
        Ok(())
    }
}
