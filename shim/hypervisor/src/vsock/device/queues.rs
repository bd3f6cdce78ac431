//! The guest's queues: its packets go to the table of connections, and its buffers are filled from there.

use std::io;

use tracing::{debug, warn};
use vhost_user_backend::{VringRwLock, VringState, VringT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{GuestMemoryMmap, Permissions};

use super::{Connect, FROM_GUEST, State, TO_GUEST};
use crate::vsock::guest_memory::Pieces;
use crate::vsock::packet::{HEADER_LEN, Header};

impl State {
    /// Moves what can be moved, until nothing does.
    pub(super) fn run(
        &mut self,
        memory: &GuestMemoryMmap,
        to_guest: &VringRwLock,
        from_guest: &VringRwLock,
    ) {
        loop {
            let mut moved = self.take_commands(to_guest);
            moved |= self.muxer.take_events();
            moved |= with_queue(FROM_GUEST, memory, from_guest, |queue| {
                self.receive(memory, queue)
            });
            moved |= with_queue(TO_GUEST, memory, to_guest, |queue| self.send(memory, queue));
            if !moved {
                return;
            }
        }
    }

    fn take_commands(&mut self, to_guest: &VringRwLock) -> bool {
        let mut any = false;
        while let Ok(Connect { port, reply }) = self.commands.try_recv() {
            any = true;
            if is_running(&to_guest.get_ref()) {
                self.muxer.connect(port, reply);
            } else {
                let down = io::Error::new(
                    io::ErrorKind::NotConnected,
                    "the guest's vsock driver is not up",
                );
                let _ = reply.send(Err(down));
            }
        }
        any
    }

    /// Takes the packets of the guest.
    fn receive(&mut self, memory: &GuestMemoryMmap, queue: &mut VringState) -> bool {
        let mut any = false;
        while self.muxer.accepts_packets() {
            let Some(chain) = queue.get_queue_mut().pop_descriptor_chain(memory) else {
                break;
            };
            any = true;
            let head = chain.head_index();
            match Pieces::collect(memory, chain.readable(), Permissions::Read) {
                Some(pieces) => self.take_packet(pieces),
                None => debug!("the guest sent a chain that is not its memory"),
            }
            if let Err(error) = queue.add_used(head, 0) {
                debug!(%error, "the guest's used ring is not its memory");
                break;
            }
        }
        any
    }

    /// The header may be spread over pieces, and the payload over any number that follow.
    fn take_packet(&mut self, mut pieces: Pieces<'_>) {
        let mut bytes = [0; HEADER_LEN];
        let Some(front) = pieces.split_to(HEADER_LEN) else {
            return;
        };
        front.copy_to(&mut bytes);
        let header = match Header::parse(&bytes) {
            Ok(header) => header,
            Err(error) => return debug!(%error, "the guest sent a malformed packet"),
        };
        // What is missing is noticed by the muxer; what is too much is not looked at.
        let len = pieces.size().min(header.len as usize);
        if let Some(mut payload) = pieces.split_to(len) {
            self.muxer.guest_packet(&header, &mut payload);
        }
    }

    /// Fills the guest's buffers.
    fn send(&mut self, memory: &GuestMemoryMmap, queue: &mut VringState) -> bool {
        let mut any = false;
        while self.muxer.has_output() {
            let Some(chain) = queue.get_queue_mut().pop_descriptor_chain(memory) else {
                break;
            };
            let head = chain.head_index();
            let used = match Pieces::collect(memory, chain.writable(), Permissions::Write) {
                Some(pieces) => match self.fill(pieces) {
                    Fill::Used(used) => used,
                    Fill::Nothing => {
                        queue.get_queue_mut().go_to_previous_position();
                        break;
                    }
                },
                None => 0,
            };
            any = true;
            if let Err(error) = queue.add_used(head, used) {
                debug!(%error, "the guest's used ring is not its memory");
                break;
            }
        }
        any
    }

    fn fill(&mut self, mut pieces: Pieces<'_>) -> Fill {
        let Some(front) = pieces.split_to(HEADER_LEN) else {
            return Fill::Used(0);
        };
        if pieces.size() == 0 {
            // A buffer without room for payload would look like the end of a socket.
            return Fill::Used(0);
        }
        let Some(header) = self.muxer.output(&mut pieces) else {
            return Fill::Nothing;
        };
        front.copy_from(&header.to_bytes());
        let header_len = u32::try_from(HEADER_LEN).unwrap_or(u32::MAX);
        Fill::Used(header_len.saturating_add(header.len))
    }
}

enum Fill {
    /// So many bytes were written.
    Used(u32),
    /// There was nothing to say after all.
    Nothing,
}

fn is_running(queue: &VringState) -> bool {
    queue.is_enabled() && queue.get_queue().ready()
}

/// Works on a queue with its notifications off, and tells the guest once if it wants to be told.
/// True when something moved, or may move because the guest was quick.
fn with_queue(
    index: usize,
    memory: &GuestMemoryMmap,
    vring: &VringRwLock,
    work: impl FnOnce(&mut VringState) -> bool,
) -> bool {
    let mut queue = vring.get_mut();
    if !is_running(&queue) || !queue.get_queue().is_valid(memory) {
        return false;
    }
    let step = |result: Result<bool, virtio_queue::Error>| {
        result.unwrap_or_else(|error| {
            warn!(queue = index, %error, "the guest's queue is not its memory");
            false
        })
    };
    step(queue.disable_notification().map(|()| false));
    let moved = work(&mut queue);
    if moved
        && step(queue.needs_notification())
        && let Err(error) = queue.signal_used_queue()
    {
        debug!(%error, "the guest cannot be notified");
    }
    // More buffers for the guest matter only when something waits for them, which the next round
    // or the next kick finds out; more packets matter at once.
    let more = step(queue.enable_notification());
    moved || (more && index == FROM_GUEST)
}
