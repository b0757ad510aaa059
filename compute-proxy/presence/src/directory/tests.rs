extern crate std;
use core::sync::atomic::AtomicU32;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const TERMS: Terms<'static> =
    Terms { start: 77, wait_limit_ms: 30_000, socket: "/run/x/pages.sock" };

fn identity(inode: u64) -> FileIdentity {
    FileIdentity { device: 3, inode, birth_ns: 1_700_000_000_000_000_000 + inode }
}

fn memory(layout: &Layout) -> Vec<AtomicU32> {
    (0..layout.bytes() / 4).map(|_| AtomicU32::new(0)).collect()
}

#[test]
fn what_was_added_is_found_and_nothing_else() {
    let files: Vec<(u64, u32)> = (0..200).map(|n| (n * 7919 + 5, (n % 13) as u32)).collect();
    let mut layout = Layout::new(files.len()).unwrap();
    let places: Vec<_> = files.iter().map(|f| layout.place(f.1).unwrap()).collect();
    let memory = memory(&layout);
    let made = Directory::create(&memory, &layout, &TERMS).unwrap();
    for (number, ((inode, _), place)) in files.iter().zip(&places).enumerate() {
        made.add(number as u64, identity(*inode), *place).unwrap();
    }
    assert_eq!(Directory::open(&memory).unwrap_err(), DirectoryError::Magic);
    made.publish();
    let directory = Directory::open(&memory).unwrap();
    assert_eq!((directory.start(), directory.wait_limit_ms()), (77, 30_000));
    assert_eq!(directory.map_count(), 200);
    let mut path = [0; SOCKET_PATH_BYTES];
    let length = directory.socket_path(&mut path).unwrap();
    assert_eq!(&path[..length], TERMS.socket.as_bytes());
    for (number, (inode, blocks)) in files.iter().enumerate() {
        let place = directory.find(identity(*inode)).unwrap().unwrap();
        let map = directory.map(place).unwrap();
        assert_eq!((map.file_number(), map.block_count()), (number as u64, *blocks));
        assert!(map.is_of(identity(*inode)));
        assert_eq!(directory.known_map(place).unwrap().block_count(), *blocks);
    }
    assert_eq!(directory.find(identity(4)), Ok(None));
    assert_eq!(directory.places().count(), 200);
}

#[test]
fn files_of_several_file_systems_may_share_an_inode_number() {
    let mut layout = Layout::new(3).unwrap();
    let places: Vec<_> = (1..4).map(|blocks| layout.place(blocks).unwrap()).collect();
    let memory = memory(&layout);
    let directory = Directory::create(&memory, &layout, &TERMS).unwrap();
    let files = [(3, 0), (4, 0), (3, 1)].map(|(device, later)| FileIdentity {
        device,
        inode: 9,
        birth_ns: 100 + later,
    });
    for (number, (file, place)) in files.iter().zip(&places).enumerate() {
        directory.add(number as u64, *file, *place).unwrap();
    }
    for (file, place) in files.iter().zip(&places) {
        assert_eq!(directory.find(*file), Ok(Some(*place)));
    }
    assert_eq!(directory.find(FileIdentity { device: 5, ..files[0] }), Ok(None));
    // A damaged proposal might have been the right one.
    let magic = places[1].unit as usize * UNIT_WORDS;
    memory[magic].store(0, Ordering::Relaxed);
    assert_eq!(directory.find(files[0]), Ok(Some(places[0])));
    assert_eq!(directory.find(files[2]), Err(HeaderError::Magic));
}

#[test]
fn requests_for_flushes_are_done_in_their_order() {
    let layout = Layout::new(0).unwrap();
    let memory = memory(&layout);
    let directory = Directory::create(&memory, &layout, &TERMS).unwrap();
    assert_eq!(directory.flush_request(), None);
    // Also where the numbers wrap.
    for start in [0, u32::MAX - 1] {
        directory.put(at::FLUSH_ASKED, start);
        directory.set_flushed(start);
        let [first, second, third] = [(); 3].map(|()| directory.ask_for_flush());
        assert_eq!(directory.flush_request(), Some(third));
        directory.set_flushed(second);
        assert!(directory.is_flushed(first) && directory.is_flushed(second));
        assert!(!directory.is_flushed(third));
        assert_eq!(directory.flush_request(), Some(third));
        directory.set_flushed(third);
        assert_eq!(directory.flush_request(), None);
    }
}

#[test]
fn a_foreign_file_is_refused() {
    let layout = Layout::new(1).unwrap();
    let memory = memory(&layout);
    Directory::create(&memory, &layout, &TERMS).unwrap().publish();
    assert!(Directory::open(&memory).is_ok());
    assert_eq!(
        Directory::open(&memory[..memory.len() - 16]).unwrap_err(),
        DirectoryError::Length(layout.bytes())
    );
    for (word, value, error) in [
        (2, 9, DirectoryError::Version(9)),
        (3, 9, DirectoryError::Version(9)),
        (6, 0, DirectoryError::Start),
        (9, 3, DirectoryError::Index(3)),
        (9, 1 << 20, DirectoryError::Index(1 << 20)),
        (16, 0, DirectoryError::SocketPath),
    ] {
        let kept = memory[word].load(Ordering::Relaxed);
        memory[word].store(value, Ordering::Relaxed);
        assert_eq!(Directory::open(&memory).unwrap_err(), error);
        memory[word].store(kept, Ordering::Relaxed);
    }
    for socket in ["", "with\0zero", &"x".repeat(SOCKET_PATH_BYTES)] {
        let made = Directory::create(&memory, &layout, &Terms { socket, ..TERMS });
        assert_eq!(made.unwrap_err(), DirectoryError::SocketPath);
    }
}

proptest! {
    #[test]
    fn scribbled_memory_never_panics(
        words in prop::collection::vec(any::<u32>(), 64..400),
        slots in 0u32..6,
        inode: u64,
    ) {
        let memory: Vec<AtomicU32> = words.iter().map(|word| AtomicU32::new(*word)).collect();
        let length = (memory.len() * 4) as u32;
        for (index, value) in
            [(0, 0x4750_5254), (1, 0x524f_4f44), (2, 1), (3, 1), (4, length), (5, 0), (8, 0), (9, 1 << slots)]
        {
            memory[index].store(value, Ordering::Relaxed);
        }
        if let Ok(directory) = Directory::open(&memory) {
            let _ = directory.find(identity(inode >> 1));
            for place in directory.proposed(inode).chain(directory.places()) {
                let _ = directory.map(place);
                let _ = directory.known_map(place);
            }
        }
    }
}
