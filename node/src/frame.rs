//! Frames of a message, and how they are given to libzmq without copying what is large.

use std::ffi::CStr;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::os::raw::{c_int, c_void};
use std::sync::Arc;

/// Below this, copying is cheaper than sharing.
const COPY_SIZE_MAX: usize = 4 * wire::limit::KIB;

/// One frame: as it came, our own bytes, or a part of something that several may send at once.
pub enum Frame {
    Message(Message),
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

    /// Hands the frame to `socket` without waiting. After an error it is whole, so that it can be tried again.
    pub(crate) fn send(&mut self, socket: &mut zmq::Socket, more: bool) -> Result<(), zmq::Error> {
        if let Frame::Bytes(bytes) = self
            && bytes.len() > COPY_SIZE_MAX
        {
            *self = Frame::whole(std::mem::take(bytes));
        }
        match self {
            Frame::Message(message) => message.send(socket, more),
            Frame::Bytes(bytes) => Message::copied(bytes).send(socket, more),
            Frame::Shared(shared) => Message::shared(shared.clone()).send(socket, more),
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

/// A `zmq_msg_t` that we own. The `zmq` crate has one too, but loses it when a send fails, cannot share bytes, and
/// allocates to ask who sent it.
#[repr(C, align(8))]
pub struct Message(zmq_sys::zmq_msg_t);

// SAFETY: libzmq lets a message be used from any one thread at a time; what messages share it counts atomically.
unsafe impl Send for Message {}
// SAFETY: `&Message` only reads the message's place and length, which only `&mut Message` changes.
unsafe impl Sync for Message {}

impl Message {
    fn empty() -> Message {
        let mut message = Message(zmq_sys::zmq_msg_t::default());
        // SAFETY: initialises the message; it cannot fail.
        unsafe { zmq_sys::zmq_msg_init(&mut message.0) };
        message
    }

    pub(crate) fn copied(bytes: &[u8]) -> Message {
        let mut message = Message(zmq_sys::zmq_msg_t::default());
        // SAFETY: the call initialises the message, and then its data has exactly `bytes.len()` bytes to fill.
        unsafe {
            let status = zmq_sys::zmq_msg_init_size(&mut message.0, bytes.len());
            assert_eq!(status, 0, "out of memory for a frame of {} bytes", bytes.len());
            let data = zmq_sys::zmq_msg_data(&mut message.0).cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len());
        }
        message
    }

    fn shared(shared: Shared) -> Message {
        let mut message = Message(zmq_sys::zmq_msg_t::default());
        let shared = Box::new(shared);
        let bytes = &(*shared.owner).as_ref()[shared.range.clone()];
        let (data, length) = (bytes.as_ptr().cast_mut().cast::<c_void>(), bytes.len());
        let hint = Box::into_raw(shared).cast::<c_void>();
        // SAFETY: the bytes are borrowed from the owner, which the boxed `Arc` keeps alive, unmoved and only ever shared
        // until libzmq calls `free_shared` with the box, once; libzmq does not write to data of an outgoing message.
        let status = unsafe { zmq_sys::zmq_msg_init_data(&mut message.0, data, length, Some(free_shared), hint) };
        assert_eq!(status, 0, "out of memory for a frame");
        message
    }

    /// The next frame that waits in `socket`, if there is one.
    pub(crate) fn receive(socket: &mut zmq::Socket) -> Option<Message> {
        let mut message = Message::empty();
        loop {
            // SAFETY: an initialised message and a live socket of this thread.
            let status = unsafe { zmq_sys::zmq_msg_recv(&mut message.0, socket.as_mut_ptr(), zmq::DONTWAIT as c_int) };
            if status >= 0 {
                return Some(message);
            }
            // SAFETY: reads this thread's error number.
            match zmq::Error::from_raw(unsafe { zmq_sys::zmq_errno() }) {
                zmq::Error::EINTR => {}
                zmq::Error::EAGAIN => return None,
                error => panic!("a socket of ours cannot receive: {error}"),
            }
        }
    }

    /// Hands the message to `socket` without waiting; it is empty then. After an error it is whole.
    fn send(&mut self, socket: &mut zmq::Socket, more: bool) -> Result<(), zmq::Error> {
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

    /// More frames of the same message follow.
    pub(crate) fn has_more(&self) -> bool {
        // SAFETY: an initialised message, which is only read.
        unsafe { zmq_sys::zmq_msg_more(&self.0) != 0 }
    }

    /// The User-Id that ZAP gave the connection it came on; empty without one.
    pub(crate) fn user(&self) -> &str {
        // SAFETY: an initialised message, which is only read, and a name that ends in a zero.
        let value = unsafe { zmq_sys::zmq_msg_gets(&self.0, c"User-Id".as_ptr()) };
        if value.is_null() {
            return "";
        }
        // SAFETY: libzmq gives a string that ends in a zero and lives as long as the message.
        unsafe { CStr::from_ptr(value) }.to_str().unwrap_or_default()
    }
}

impl Deref for Message {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let message = (&raw const self.0).cast_mut();
        // SAFETY: an initialised message, which libzmq only reads here; it takes a `mut` pointer for the sake of those who
        // write. The data is never null, has `size` initialised bytes, and stays while the message is borrowed.
        unsafe {
            let data = zmq_sys::zmq_msg_data(message).cast::<u8>();
            std::slice::from_raw_parts(data, zmq_sys::zmq_msg_size(message))
        }
    }
}

impl DerefMut for Message {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the bytes are this message's alone: none is copied with `zmq_msg_copy`, those that were
        // received in one buffer have each their part of it, and those of `shared` never get out of this file.
        unsafe {
            let data = zmq_sys::zmq_msg_data(&mut self.0).cast::<u8>();
            std::slice::from_raw_parts_mut(data, zmq_sys::zmq_msg_size(&self.0))
        }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: the message was initialised by every constructor and is closed here only.
        unsafe { zmq_sys::zmq_msg_close(&mut self.0) };
    }
}

/// libzmq is done with a shared frame; it may say so from its own thread.
unsafe extern "C" fn free_shared(_data: *mut c_void, hint: *mut c_void) {
    // SAFETY: `hint` is the box that `Message::shared` leaked to this call, which comes once. `Shared` is Send.
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
        let owner = Arc::new(Counted(vec![7; 8192], freed.clone()));
        let mut frame = Frame::shared(owner, 1024..8192);
        assert_eq!(frame.len(), 7168);

        let context = zmq::Context::new();
        let (mut from, mut to) = (context.socket(zmq::PAIR).unwrap(), context.socket(zmq::PAIR).unwrap());
        // Nobody is connected: the send fails and the frame is still ours.
        for _ in 0..2 {
            assert_eq!(frame.send(&mut from, false), Err(zmq::Error::EAGAIN));
            assert_eq!(freed.load(Ordering::SeqCst), 0);
        }
        to.bind("inproc://frames").unwrap();
        from.connect("inproc://frames").unwrap();
        frame.send(&mut from, false).unwrap();
        drop(frame);
        let received = Message::receive(&mut to).unwrap();
        assert_eq!(&received[..], &[7; 7168]);
        assert_eq!(freed.load(Ordering::SeqCst), 0);
        drop(received);
        assert_eq!(freed.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn frames_of_every_size_survive_a_failed_try() {
        let context = zmq::Context::new();
        let (mut from, mut to) = (context.socket(zmq::PAIR).unwrap(), context.socket(zmq::PAIR).unwrap());
        let mut frames: Vec<Frame> = [0, 1, 33, COPY_SIZE_MAX, COPY_SIZE_MAX + 1, 100_000]
            .map(|size| Frame::Bytes(vec![3; size]))
            .into_iter()
            .collect();
        let again = |frame: &mut Frame, from: &mut zmq::Socket| {
            let before = frame.to_vec();
            assert_eq!(frame.send(from, false), Err(zmq::Error::EAGAIN));
            assert_eq!(**frame, before);
        };
        for frame in &mut frames {
            again(frame, &mut from);
        }
        to.bind("inproc://again").unwrap();
        from.connect("inproc://again").unwrap();
        // Also what was received: there and back.
        for mut frame in frames {
            let before = frame.to_vec();
            frame.send(&mut from, false).unwrap();
            let mut frame = Frame::Message(Message::receive(&mut to).unwrap());
            let mut nobody = context.socket(zmq::PAIR).unwrap();
            again(&mut frame, &mut nobody);
            frame.send(&mut to, false).unwrap();
            assert_eq!(*Message::receive(&mut from).unwrap(), before);
        }
    }

    #[test]
    #[should_panic(expected = "is not within")]
    fn a_range_beyond_the_owner_is_a_bug() {
        Frame::shared(Arc::new(vec![0u8; 8]), 4..9);
    }
}
