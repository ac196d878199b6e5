//! Frames of a message, and how they are given to libzmq without copying what is large.

use std::fmt;
use std::ops::{Deref, Range};
use std::os::raw::{c_int, c_void};
use std::sync::Arc;

/// Below this, copying is cheaper than sharing.
const COPY_SIZE_MAX: usize = 512;

/// One frame: as it came, our own bytes, or a part of something that several may send at once.
pub enum Frame {
    Message(zmq::Message),
    Bytes(Vec<u8>),
    Shared(Shared),
}

/// Bytes that live as long as their owner, as a memory map.
#[derive(Clone)]
pub struct Shared {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Frame {
    /// The bytes `range` of `owner`, which is kept until the peer has them, and is never copied. Panics beyond its end.
    pub fn shared(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Frame {
        let length = (*owner).as_ref().len();
        assert!(range.start <= range.end && range.end <= length, "{range:?} is not within {length} bytes");
        Frame::Shared(Shared { owner, range })
    }

    /// The frame as libzmq takes it. The frame stays whole, so that it can be tried again.
    pub(crate) fn outgoing(&mut self) -> Outgoing {
        if self.len() <= COPY_SIZE_MAX {
            return Outgoing::copied(self);
        }
        match std::mem::replace(self, Frame::Bytes(Vec::new())) {
            Frame::Message(message) => *self = Frame::whole(Received(message)),
            Frame::Bytes(bytes) => *self = Frame::whole(bytes),
            shared @ Frame::Shared(_) => *self = shared,
        }
        match self {
            Frame::Shared(shared) => Outgoing::shared(shared.clone()),
            Frame::Message(_) | Frame::Bytes(_) => unreachable!("it was made shared above"),
        }
    }

    fn whole(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Frame {
        let length = owner.as_ref().len();
        Frame::shared(Arc::new(owner), 0..length)
    }
}

impl Deref for Frame {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Frame::Message(message) => message,
            Frame::Bytes(bytes) => bytes,
            Frame::Shared(shared) => &(*shared.owner).as_ref()[shared.range.clone()],
        }
    }
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} bytes)", self.len())
    }
}

impl From<Vec<u8>> for Frame {
    fn from(bytes: Vec<u8>) -> Frame {
        Frame::Bytes(bytes)
    }
}

impl From<zmq::Message> for Frame {
    fn from(message: zmq::Message) -> Frame {
        Frame::Message(message)
    }
}

/// A received message as the owner of its bytes.
struct Received(zmq::Message);

impl AsRef<[u8]> for Received {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// All frames of one message, in order.
#[derive(Debug, Default)]
pub struct Frames(pub Vec<Frame>);

impl Frames {
    /// The sum of the frames' lengths, in bytes.
    pub fn size(&self) -> usize {
        self.0.iter().map(|frame| frame.len()).sum()
    }
}

impl From<Frame> for Frames {
    fn from(frame: Frame) -> Frames {
        Frames(vec![frame])
    }
}

impl From<Vec<u8>> for Frames {
    fn from(bytes: Vec<u8>) -> Frames {
        Frames(vec![Frame::Bytes(bytes)])
    }
}

impl From<Vec<Frame>> for Frames {
    fn from(frames: Vec<Frame>) -> Frames {
        Frames(frames)
    }
}

impl From<Vec<Vec<u8>>> for Frames {
    fn from(frames: Vec<Vec<u8>>) -> Frames {
        Frames(frames.into_iter().map(Frame::Bytes).collect())
    }
}

impl<const N: usize> From<[Frame; N]> for Frames {
    fn from(frames: [Frame; N]) -> Frames {
        Frames(frames.into())
    }
}

impl<const N: usize> From<[Vec<u8>; N]> for Frames {
    fn from(frames: [Vec<u8>; N]) -> Frames {
        Frames(frames.into_iter().map(Frame::Bytes).collect())
    }
}

/// A `zmq_msg_t` that we own. The `zmq` crate has one too, but loses it when a send fails and cannot share bytes.
#[repr(C, align(8))]
pub(crate) struct Outgoing(zmq_sys::zmq_msg_t);

impl Outgoing {
    pub(crate) fn copied(bytes: &[u8]) -> Outgoing {
        let mut outgoing = Outgoing(zmq_sys::zmq_msg_t::default());
        // SAFETY: the call initialises the message, and then its data has exactly `bytes.len()` bytes to fill.
        unsafe {
            let status = zmq_sys::zmq_msg_init_size(&mut outgoing.0, bytes.len());
            assert_eq!(status, 0, "out of memory for a frame of {} bytes", bytes.len());
            let data = zmq_sys::zmq_msg_data(&mut outgoing.0).cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len());
        }
        outgoing
    }

    fn shared(shared: Shared) -> Outgoing {
        let mut outgoing = Outgoing(zmq_sys::zmq_msg_t::default());
        let shared = Box::new(shared);
        let bytes = &(*shared.owner).as_ref()[shared.range.clone()];
        let (data, length) = (bytes.as_ptr().cast_mut().cast::<c_void>(), bytes.len());
        let hint = Box::into_raw(shared).cast::<c_void>();
        // SAFETY: the bytes are borrowed from the owner, which the boxed `Arc` keeps alive, unmoved and only ever shared
        // until libzmq calls `free_shared` with the box, once; libzmq does not write to data of an outgoing message.
        let status = unsafe { zmq_sys::zmq_msg_init_data(&mut outgoing.0, data, length, Some(free_shared), hint) };
        assert_eq!(status, 0, "out of memory for a frame");
        outgoing
    }

    /// Hands the frame to `socket` without waiting. After an error the frame is still ours.
    pub(crate) fn send(mut self, socket: &mut zmq::Socket, more: bool) -> Result<(), zmq::Error> {
        let flags = zmq::DONTWAIT | if more { zmq::SNDMORE } else { 0 };
        loop {
            // SAFETY: an initialised message and a live socket of this thread. After success libzmq has left an empty
            // message behind, which `drop` may close like any other.
            let status = unsafe { zmq_sys::zmq_msg_send(&mut self.0, socket.as_mut_ptr(), flags as c_int) };
            if status >= 0 {
                return Ok(());
            }
            // SAFETY: reads this thread's error number.
            match zmq::Error::from_raw(unsafe { zmq_sys::zmq_errno() }) {
                // A signal came while libzmq looked at its mailbox; nothing was taken.
                zmq::Error::EINTR => {}
                error => return Err(error),
            }
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // SAFETY: the message was initialised by every constructor and is closed here only.
        unsafe { zmq_sys::zmq_msg_close(&mut self.0) };
    }
}

/// libzmq is done with a shared frame; it may say so from its own thread.
unsafe extern "C" fn free_shared(_data: *mut c_void, hint: *mut c_void) {
    // SAFETY: `hint` is the box that `Outgoing::shared` leaked to this call, which comes once. `Shared` is Send.
    drop(unsafe { Box::from_raw(hint.cast::<Shared>()) });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Counted(Vec<u8>, Arc<AtomicUsize>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_shared_frame_is_freed_exactly_once_sent_or_not() {
        let freed = Arc::new(AtomicUsize::new(0));
        let owner = Arc::new(Counted(vec![7; 4096], freed.clone()));
        let mut frame = Frame::shared(owner, 1024..4096);
        assert_eq!(frame.len(), 3072);
        drop(frame.outgoing());
        drop(frame.outgoing());
        assert_eq!(freed.load(Ordering::SeqCst), 0);

        let context = zmq::Context::new();
        let (mut from, to) = (context.socket(zmq::PAIR).unwrap(), context.socket(zmq::PAIR).unwrap());
        // Nobody is connected: the send fails and the frame is still ours.
        assert_eq!(frame.outgoing().send(&mut from, false), Err(zmq::Error::EAGAIN));
        assert_eq!(freed.load(Ordering::SeqCst), 0);
        to.bind("inproc://frames").unwrap();
        from.connect("inproc://frames").unwrap();
        frame.outgoing().send(&mut from, false).unwrap();
        drop(frame);
        let received = to.recv_msg(0).unwrap();
        assert_eq!(&received[..], &[7; 3072]);
        assert_eq!(freed.load(Ordering::SeqCst), 0);
        drop(received);
        assert_eq!(freed.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn frames_of_every_size_survive_a_failed_try() {
        for size in [0, 1, 33, 512, 513, 100_000] {
            let mut frame = Frame::Bytes(vec![3; size]);
            drop(frame.outgoing());
            assert_eq!(*frame, vec![3; size]);
        }
    }

    #[test]
    #[should_panic(expected = "is not within")]
    fn a_range_beyond_the_owner_is_a_bug() {
        Frame::shared(Arc::new(vec![0u8; 8]), 4..9);
    }
}
