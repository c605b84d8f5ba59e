//! A FUSE client for tests: what the guest's kernel says to the device.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::{
    AttrOut, CreateIn, Dirent, EntryOut, FsOptions, InHeader, InitIn, InitOut, Opcode, OpenIn,
    OpenOut, OutHeader, ReadIn, WriteIn, WriteOut,
};
use vm_memory::{ByteValued, Bytes};

use super::Fs;
use crate::virtio::device::{ActiveDevice, VirtioDevice};
use crate::virtio::queue::Buffer;
use crate::virtio::testing::{Desc, GuestQueue};

pub(super) const ROOT: u64 = 1;
const REPLY_ROOM: usize = (1 << 20) + 4096;
const PATIENCE: Duration = Duration::from_secs(20);

/// The caller in whose name requests are made.
#[derive(Clone, Copy, Default)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A guest that has the device active.
pub(super) struct Guest {
    pub(super) fs: Fs,
    pub(super) high_priority: GuestQueue,
    pub(super) requests: GuestQueue,
    pub(super) caller: Caller,
    request: Buffer,
    reply: Buffer,
    unique: u64,
}

impl Guest {
    /// A guest that shares `root` but has not said INIT yet.
    pub(super) fn boot(root: &Path) -> Self {
        let mut high_priority = GuestQueue::new(128);
        let mut requests = high_priority.sibling(1, 1024);
        // The first megabytes belong to the high-priority queue.
        let request = high_priority.room(REPLY_ROOM);
        let reply = requests.room(REPLY_ROOM);
        let mut guest = Self {
            fs: Fs::spawn("share", root).unwrap(),
            high_priority,
            requests,
            caller: Caller::default(),
            request,
            reply,
            unique: 0,
        };
        guest.activate();
        guest
    }

    /// A guest that has mounted `root`.
    pub(super) fn mount(root: &Path) -> Self {
        let mut guest = Self::boot(root);
        guest.init();
        guest
    }

    pub(super) fn activate(&mut self) {
        self.fs
            .activate(ActiveDevice {
                memory: self.requests.shared_memory(),
                features: 0,
                queues: vec![
                    Some(self.high_priority.device_side()),
                    Some(self.requests.device_side()),
                ],
                interrupt: self.requests.interrupt().clone(),
            })
            .unwrap();
    }

    /// The driver resets the device and forgets its queues.
    pub(super) fn reset(&mut self) {
        self.fs.reset();
        self.requests.interrupt().reset();
        self.high_priority.restart();
        self.requests.restart();
    }

    pub(super) fn init(&mut self) -> InitOut {
        let flags = FsOptions::all() - FsOptions::FD_PASSTHROUGH;
        let body = InitIn {
            major: 7,
            minor: 41,
            max_readahead: 128 << 10,
            flags: flags.bits() as u32,
        };
        let flags2 = (flags.bits() >> 32) as u32;
        let body = [body.as_slice(), flags2.as_slice(), &[0; 44]].concat();
        let reply = self.call(Opcode::Init, 0, &body).unwrap();
        *InitOut::from_slice(&reply).unwrap()
    }

    /// One request and its reply: the body, or the error number.
    pub(super) fn call(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.call_with_room(opcode, node, body, REPLY_ROOM)
    }

    pub(super) fn call_with_room(
        &mut self,
        opcode: Opcode,
        node: u64,
        body: &[u8],
        room: usize,
    ) -> Result<Vec<u8>, i32> {
        let message = self.message(opcode, node, body);
        let written = self.exchange(&message, room).expect("a reply");
        let reply = self.requests.read(self.reply, written as usize);
        let (header, body) = reply.split_at(size_of::<OutHeader>());
        let header: OutHeader = *OutHeader::from_slice(header).unwrap();
        assert_eq!(header.unique, self.unique);
        assert_eq!(header.len, written);
        if header.error == 0 {
            Ok(body.to_vec())
        } else {
            Err(-header.error)
        }
    }

    /// A request in bytes.
    pub(super) fn message(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> Vec<u8> {
        self.unique += 2;
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode: opcode as u32,
            unique: self.unique,
            nodeid: node,
            uid: self.caller.uid,
            gid: self.caller.gid,
            pid: 1,
            ..InHeader::default()
        };
        [header.as_slice(), body].concat()
    }

    /// Sends bytes as they are; `None` when the device gave up instead of
    /// answering, else how many bytes it answered.
    pub(super) fn exchange(&mut self, message: &[u8], room: usize) -> Option<u32> {
        self.requests
            .memory()
            .write_slice(message, self.request.address)
            .unwrap();
        let request = Buffer {
            len: message.len() as u32,
            ..self.request
        };
        let reply = Buffer {
            len: room as u32,
            ..self.reply
        };
        let mut chain = vec![Desc::readable(request)];
        if room > 0 {
            chain.push(Desc::writable(reply));
        }
        let head = self.requests.offer(&chain);
        let mut answer = None;
        self.eventually("an answer", |guest| {
            // One that is still being worked on may come first.
            answer = guest
                .requests
                .used()
                .into_iter()
                .find(|used| used.0 == head);
            answer.is_some() || guest.requests.interrupt().has_failed()
        });
        answer.map(|(_, written)| written)
    }

    /// Sends a request that has no answer, and waits until it is done.
    pub(super) fn send_high_priority(&mut self, opcode: Opcode, node: u64, body: &[u8]) {
        let message = self.message(opcode, node, body);
        let request = self.high_priority.buffer(&message);
        let head = self.high_priority.offer(&[Desc::readable(request)]);
        let mut used = Vec::new();
        self.eventually("the device takes it", |guest| {
            used = guest.high_priority.used();
            !used.is_empty()
        });
        assert_eq!(used, vec![(head, 0)]);
    }

    pub(super) fn forget(&mut self, node: u64, count: u64) {
        self.send_high_priority(Opcode::Forget, node, &count.to_le_bytes());
    }

    pub(super) fn eventually(&mut self, what: &str, mut check: impl FnMut(&mut Self) -> bool) {
        let started = Instant::now();
        while !check(self) {
            assert!(started.elapsed() < PATIENCE, "{what}");
            thread::yield_now();
        }
    }

    pub(super) fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<EntryOut, i32> {
        self.call(Opcode::Lookup, parent, &[name, b"\0"].concat())
            .map(|reply| *EntryOut::from_slice(&reply).unwrap())
    }

    /// Looks a path up, component by component.
    pub(super) fn walk(&mut self, path: &str) -> Result<EntryOut, i32> {
        let mut entry = EntryOut {
            nodeid: ROOT,
            ..EntryOut::default()
        };
        for name in path.split('/') {
            entry = self.lookup(entry.nodeid, name.as_bytes())?;
        }
        Ok(entry)
    }

    pub(super) fn getattr(&mut self, node: u64) -> Result<AttrOut, i32> {
        self.call(Opcode::Getattr, node, &[0; 16])
            .map(|reply| *AttrOut::from_slice(&reply).unwrap())
    }

    pub(super) fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        self.open_as(Opcode::Open, node, flags)
    }

    pub(super) fn opendir(&mut self, node: u64) -> Result<u64, i32> {
        self.open_as(Opcode::Opendir, node, libc::O_DIRECTORY)
    }

    fn open_as(&mut self, opcode: Opcode, node: u64, flags: i32) -> Result<u64, i32> {
        let body = OpenIn {
            flags: flags as u32,
            ..OpenIn::default()
        };
        self.call(opcode, node, body.as_slice())
            .map(|reply| OpenOut::from_slice(&reply).unwrap().fh)
    }

    pub(super) fn create(
        &mut self,
        parent: u64,
        name: &str,
        mode: u32,
        umask: u32,
    ) -> Result<(EntryOut, u64), i32> {
        let body = CreateIn {
            flags: (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32,
            mode,
            umask,
            ..CreateIn::default()
        };
        let body = [body.as_slice(), name.as_bytes(), b"\0"].concat();
        let reply = self.call(Opcode::Create, parent, &body)?;
        let (entry, open) = reply.split_at(size_of::<EntryOut>());
        Ok((
            *EntryOut::from_slice(entry).unwrap(),
            OpenOut::from_slice(open).unwrap().fh,
        ))
    }

    pub(super) fn read(
        &mut self,
        node: u64,
        fh: u64,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, i32> {
        let body = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        self.call(Opcode::Read, node, body.as_slice())
    }

    pub(super) fn write(
        &mut self,
        node: u64,
        fh: u64,
        offset: u64,
        bytes: &[u8],
    ) -> Result<u32, i32> {
        let body = WriteIn {
            fh,
            offset,
            size: bytes.len() as u32,
            flags: libc::O_RDWR as u32,
            ..WriteIn::default()
        };
        self.call(Opcode::Write, node, &[body.as_slice(), bytes].concat())
            .map(|reply| WriteOut::from_slice(&reply).unwrap().size)
    }

    /// All names of a directory, page by page, by READDIR or READDIRPLUS.
    pub(super) fn names(&mut self, node: u64, opcode: Opcode) -> Result<Vec<Vec<u8>>, i32> {
        let fh = self.opendir(node)?;
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let body = ReadIn {
                fh,
                offset,
                size: 4096,
                ..ReadIn::default()
            };
            let reply = self.call(opcode, node, body.as_slice())?;
            if reply.is_empty() {
                return Ok(names);
            }
            let mut rest = &reply[..];
            while !rest.is_empty() {
                if matches!(opcode, Opcode::Readdirplus) {
                    rest = &rest[size_of::<EntryOut>()..];
                }
                let (head, tail) = rest.split_at(size_of::<Dirent>());
                let dirent: Dirent = *Dirent::from_slice(head).unwrap();
                names.push(tail[..dirent.namelen as usize].to_vec());
                offset = dirent.off;
                rest = &tail[(dirent.namelen as usize).next_multiple_of(8)..];
            }
        }
    }
}
