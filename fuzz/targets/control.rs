//! Small files: `pg_control`, relation maps, two-phase state, stored control fields, WAL page headers, names.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use treering_fuzz::{
    input::{Input, give},
    memory,
};
use treering_pgfmt::{
    control::{CONTROL_FILE_SIZE, ControlFile},
    relmap::{self, RelMap},
    relpath, twophase,
    version::{Layout, PgMajor},
    wal::{
        page_header::PageHeader,
        reader::find_first_record,
        state::{ClusterState, STATE_FIELDS},
    },
};
use treering_types::Lsn;

/// The largest of these files is `pg_control`.
const BYTES_MAX: usize = 256 * 1024;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let (what, major) = (input.u8(), PgMajor::ALL[usize::from(input.u8() % 4)]);
    let rest = input.0;
    memory::bounded(BYTES_MAX + 8 * bytes.len(), || match what % 6 {
        0 => control_file(major, rest),
        1 => relation_map(major, rest),
        2 => two_phase(major, rest),
        3 => stored_fields(rest),
        4 => page_header(major, rest),
        _ => names(major, rest),
    });
});

/// The file with version and checksum made right, unless its last byte says otherwise.
fn control_file(major: PgMajor, bytes: &[u8]) {
    let mut file = vec![0; CONTROL_FILE_SIZE];
    let size = give(bytes, &mut file);
    if file[CONTROL_FILE_SIZE - 1].is_multiple_of(2) {
        let Layout { control_version, catalog_version, control_crc_offset, .. } = *major.layout();
        file[8..12].copy_from_slice(&control_version.to_le_bytes());
        file[12..16].copy_from_slice(&catalog_version.to_le_bytes());
        let crc = crc32c(&file[..control_crc_offset]);
        file[control_crc_offset..control_crc_offset + 4].copy_from_slice(&crc.to_le_bytes());
    }
    if size < 8 {
        file.truncate(size);
    }
    let Ok(mut parsed) = ControlFile::parse(&file) else { return };
    assert_eq!(
        ControlFile::parse(&parsed.encode()[..]).as_ref().map(ControlFile::major),
        Ok(major)
    );
    let state = ClusterState::from_control(&parsed);
    let (redo, time) = (Lsn(0x300_0028), parsed.time());
    let payload = state.checkpoint_for_start(1, 1, redo, time).encode();
    let (parameters, nonce) = (parsed.parameters(), parsed.nonce());
    parsed.set_parameters(&parameters);
    parsed.set_nonce(&nonce);
    parsed.shut_down_at(redo, &payload, time);
    let again = ControlFile::parse(&parsed.encode()[..]);
    assert_eq!(again.as_ref().map(ControlFile::checkpoint), Ok(parsed.checkpoint()));
    assert_eq!(again.as_ref().map(ControlFile::parameters), Ok(parameters));
}

fn crc32c(bytes: &[u8]) -> u32 {
    let file = twophase::file_bytes(bytes);
    let crc = file.last_chunk::<4>();
    crc.map_or(0, |crc| u32::from_le_bytes(*crc))
}

fn relation_map(major: PgMajor, bytes: &[u8]) {
    let _ = RelMap::parse(major, bytes);
    let _ = relmap::file_from_record(major, bytes);
    let mut sized = vec![0; major.layout().rel_map_size];
    give(bytes, &mut sized);
    sized[..4].copy_from_slice(&0x0059_2717_u32.to_le_bytes());
    let Ok(file) = relmap::file_from_record(major, &sized) else { return };
    let map = RelMap::parse(major, &file).expect("its checksum has been made right");
    let encoded = map.encode(major).expect("as many entries as were read");
    assert_eq!(RelMap::parse(major, &encoded), Ok(map));
}

fn two_phase(major: PgMajor, bytes: &[u8]) {
    let _ = twophase::main_data_of(bytes);
    assert_eq!(twophase::main_data_of(&twophase::file_bytes(bytes)), Some(bytes));
    if let Some(id) =
        std::str::from_utf8(bytes).ok().and_then(|name| twophase::parse_file_name(major, name))
    {
        assert_eq!(twophase::file_name(major, id).as_bytes(), bytes);
    }
}

/// What loads is stored the same way again.
fn stored_fields(bytes: &[u8]) {
    let stored = Bytes::copy_from_slice(bytes);
    for field in STATE_FIELDS {
        let mut state = ClusterState::default();
        if state.load(field, &stored).is_ok() {
            assert_eq!(state.encode(field), Some(stored.clone()), "{field:?}");
        }
    }
}

fn page_header(major: PgMajor, bytes: &[u8]) {
    for page in [Lsn(0x200_0000), Lsn(0x200_2000)] {
        let mut header =
            PageHeader { info: 0, tli: 1, rem_len: 0, system_id: None }.encode(major, page);
        for (made, given) in header.iter_mut().zip(bytes) {
            *made ^= given;
        }
        if let Ok(parsed) = PageHeader::parse(major, page, &header) {
            let encoded = parsed.encode(major, page);
            assert_eq!(PageHeader::parse(major, page, &encoded), Ok(parsed));
        }
        let _ = PageHeader::parse(major, page, bytes);
        let _ = find_first_record(major, page, &header);
        let _ = find_first_record(major, page, bytes);
    }
}

fn names(major: PgMajor, bytes: &[u8]) {
    let Ok(path) = std::str::from_utf8(bytes) else { return };
    if let Some((rel, segment_no)) = relpath::parse_path(major, path) {
        assert_eq!(relpath::path_of(major, rel, segment_no), path);
    }
}
