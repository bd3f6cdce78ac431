//! Archives that are too much of something.

use std::io::Read;

use image_rs::unpack::Limits;

use super::tarball::{self, Member, Stage, Tarball, options, record};
use super::{case, kind_of, new, run};

#[test]
fn every_cap_has_its_name() {
    let many = (0..1001).fold(new(), |tar, index| tar.file(format!("f{index}"), ""));
    let long = format!("{}/", "a".repeat(200)).repeat(21);
    let big = vec![b'x'; 2 << 20];
    let attributes = vec![("SCHILY.xattr.user.big", &big[..200 << 10])];
    run(vec![
        case("entries", "Limit entries", vec![many]),
        case(
            "depth",
            "Limit path_depth",
            vec![new().long(b'L', "d/".repeat(129)).dir("d")],
        ),
        case(
            "length",
            "Limit path_bytes",
            vec![new().long(b'L', long).dir("d")],
        ),
        case(
            "target",
            "Limit path_bytes",
            vec![new().long(b'K', "a/".repeat(2100)).symlink("a", "b")],
        ),
        case(
            "PAX header",
            "Limit header_bytes",
            vec![new().pax(&[("comment", &big)]).dir("d")],
        ),
        case(
            "long name",
            "Limit header_bytes",
            vec![new().long(b'L', &big).dir("d")],
        ),
        case(
            "global header",
            "Limit header_bytes",
            vec![
                new()
                    .add(&Member::new(b'g', "pax").content(record("comment", &big)))
                    .dir("d"),
            ],
        ),
        case(
            "attributes",
            "Limit xattr_bytes",
            vec![new().pax(&attributes).dir("d")],
        ),
        case(
            "headers without end",
            "Limit header_bytes",
            vec![(0..2100).fold(new(), |tar, _| tar.add(&Member::new(b'g', "g")))],
        ),
    ]);
    let stage = Stage::new();
    let limits = Limits {
        unpacked_bytes: 1000,
        journal_bytes: 500,
        file_bytes: 800,
        ..Limits::default()
    };
    let options = options(limits);
    let fails = |tar: Tarball| kind_of(&stage.unpack(&[tar.end()], &options).unwrap_err());
    let half = [b'x'; 600];
    assert_eq!(
        fails(new().file("a", half).file("b", half)),
        "Limit unpacked_bytes"
    );
    assert_eq!(fails(new().file("a", [b'x'; 900])), "Limit file_bytes");
    assert_eq!(
        fails(
            new()
                .dir("a".repeat(90))
                .dir("b".repeat(90))
                .dir("c".repeat(90))
                .dir("d".repeat(90))
        ),
        "Limit journal_bytes"
    );
    let whiteouts = (0..9).fold(new(), |tar, index| tar.file(format!(".wh.{index}"), ""));
    assert_eq!(fails(whiteouts), "Limit journal_bytes");
    let links = (0..9).fold(new(), |tar, index| tar.hard_link(format!("{index}"), "x"));
    assert_eq!(fails(links), "Limit journal_bytes");
}

/// What a member is called.
type Names = fn(u64) -> String;

/// Ten million members, made while they are read.
struct Endless {
    name: Names,
    kind: u8,
    member: u64,
    block: [u8; tarball::BLOCK],
    position: usize,
}

impl Endless {
    fn new(kind: u8, name: Names) -> Self {
        Self {
            name,
            kind,
            member: 0,
            block: [0; tarball::BLOCK],
            position: tarball::BLOCK,
        }
    }
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.position == self.block.len() {
            if self.member == 10_000_000 {
                return Ok(0);
            }
            self.block = Member::new(self.kind, (self.name)(self.member))
                .link("x")
                .header();
            (self.member, self.position) = (self.member + 1, 0);
        }
        let count = buffer.len().min(self.block.len() - self.position);
        buffer[..count].copy_from_slice(&self.block[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}

/// Runs in a process of its own, because the highest mark of memory is the process's.
#[test]
fn ten_million_entries_do_not_fill_the_memory() {
    const CHILD: &str = "CLOISTER_TEN_MILLION";
    if std::env::var_os(CHILD).is_none() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "cap::ten_million_entries_do_not_fill_the_memory",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&child.stderr)
        );
        let peak = text
            .split("peak ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let peak: u64 = peak.unwrap().parse().unwrap();
        assert!(peak < 64 * 1024, "{peak} KiB");
        return;
    }
    let few = Limits {
        entries: 5_000,
        ..Limits::default()
    };
    let many = Limits {
        entries: 300_000,
        ..Limits::default()
    };
    let streams: [(u8, Names, Limits, &str); 7] = [
        (b'0', |n| format!("f{n}"), few.clone(), "Limit entries"),
        (b'0', |_| "same".to_owned(), few.clone(), "Limit entries"),
        (
            b'5',
            |n| format!("d{}/e{n}", n / 100),
            few.clone(),
            "Limit entries",
        ),
        (b'2', |n| format!("l{n}"), few, "Limit entries"),
        // These leave nothing on the disk; so it is the memory that is in danger.
        (
            b'0',
            |n| format!(".wh.{n}"),
            Limits::default(),
            "Limit journal_bytes",
        ),
        (b'0', |n| format!(".wh..wh.{n}"), many, "Limit entries"),
        (
            b'1',
            |n| format!("h{n}"),
            Limits::default(),
            "Limit journal_bytes",
        ),
    ];
    for (kind, name, limits, expected) in streams {
        let stage = Stage::new();
        let error = stage
            .unpack_stream(Endless::new(kind, name), &options(limits))
            .unwrap_err();
        assert_eq!(kind_of(&error), expected, "{error}");
        stage.assert_untouched(&name(0));
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    println!("peak {} KiB", peak.unwrap().trim().trim_end_matches(" kB"));
}

/// As many as fit into the default limits, each with what once made a whole list be walked.
#[test]
fn no_entry_costs_what_all_before_it_cost() {
    let stage = Stage::new();
    let count = 2_000;
    let mut tar = new();
    for index in 0..count {
        tar = tar.hard_link(format!("l{index}"), "target");
    }
    let lower = (0..count).fold(new().file("target", "x"), |tar, index| {
        tar.dir(format!("d{index}"))
    });
    let hide = (0..count).fold(new(), |tar, index| tar.file(format!(".wh.d{index}"), ""));
    let layers = [lower.end(), tar.end(), hide.end()];
    let limits = Limits {
        entries: 10_000,
        ..Limits::default()
    };
    stage.unpack(&layers, &options(limits)).unwrap();
    assert_eq!(std::fs::read_dir(stage.root()).unwrap().count(), count + 1);
}
