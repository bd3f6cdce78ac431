//! Logs with and without registers, and what a crash leaves of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use evidence::eventlog::{self, EventClaims, LOG_END, header};

use rustix::fs::{FlockOperation, flock};

use super::files::{AHEAD, LOCK, LOG};
use super::*;

/// Registers, and what goes wrong with the next extension.
struct Fake {
    values: Mutex<[[u8; REGISTER_BYTES]; 4]>,
    fault: Mutex<Fault>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            values: Mutex::new([[0; REGISTER_BYTES]; 4]),
            fault: Mutex::default(),
        }
    }
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Fault {
    #[default]
    None,
    /// Told as failed, and not done.
    Refused,
    /// Told as failed, and done.
    Late,
    /// Something else is in it.
    Other,
}

impl Registers for Fake {
    fn read(&self, register: usize) -> io::Result<[u8; REGISTER_BYTES]> {
        Ok(self.values.lock().unwrap()[register])
    }

    fn extend(&self, register: usize, digest: &[u8; REGISTER_BYTES]) -> io::Result<()> {
        let fault = *self.fault.lock().unwrap();
        let value = &mut self.values.lock().unwrap()[register];
        match fault {
            Fault::Refused => {}
            Fault::None | Fault::Late => *value = extended(value, digest),
            Fault::Other => *value = [1; REGISTER_BYTES],
        }
        match fault {
            Fault::None => Ok(()),
            _ => Err(io::Error::other("the kernel says no")),
        }
    }
}

fn whole(log: &EventLog) -> Vec<u8> {
    log.held(|entries| [&header()[..], entries, &LOG_END].concat())
        .unwrap()
}

fn assert_replays(log: &EventLog, registers: &Fake) {
    let bytes = whole(log);
    let replayed = eventlog::EventLog::parse(&bytes).unwrap().replay().unwrap();
    let values = replayed.map(|register| register.value);
    assert_eq!(values, *registers.values.lock().unwrap());
}

fn texts(log: &EventLog) -> Vec<String> {
    let bytes = whole(log);
    let log = eventlog::EventLog::parse(&bytes).unwrap();
    let text = |event: &eventlog::Event<'_>| {
        assert!(event.digest_matches());
        serde_json::to_string(&EventClaims::from(event)).unwrap()
    };
    log.events().iter().map(text).collect()
}

#[test]
fn each_event_is_in_the_register_that_it_asked_for_and_the_log_replays() {
    let registers = Arc::new(Fake::default());
    let log = EventLog::new(Some(registers.clone()));
    log.extend("a.b", "first", r#"{"x": 1}"#, None).unwrap();
    log.extend("a.b", "second", "", Some(1)).unwrap();
    log.extend("a.b", "third", "z", Some(8)).unwrap();
    assert_replays(&log, &registers);
    let [rtmr_0, rtmr_1, rtmr_2, rtmr_3] = *registers.values.lock().unwrap();
    assert_eq!(rtmr_1, [0; 48]);
    for changed in [rtmr_0, rtmr_2, rtmr_3] {
        assert_ne!(changed, [0; 48]);
    }
    assert!(texts(&log)[0].contains("first"));
}

#[test]
fn fields_that_could_shift_are_refused_and_nothing_is_extended() {
    let registers = Arc::new(Fake::default());
    let log = EventLog::new(Some(registers.clone()));
    for (domain, operation, content) in [("a b", "c", "d"), ("a", "b c", ""), ("a", "b", "c\nd")] {
        assert!(matches!(
            log.extend(domain, operation, content, None),
            Err(EventLogError::Event(_))
        ));
    }
    assert_replays(&log, &registers);
}

#[test]
fn what_a_register_did_not_take_is_not_logged_and_what_it_took_is() {
    let registers = Arc::new(Fake::default());
    let log = EventLog::new(Some(registers.clone()));
    *registers.fault.lock().unwrap() = Fault::Refused;
    assert!(matches!(
        log.extend("a", "b", "lost", None),
        Err(EventLogError::Register { register: 3, .. })
    ));
    *registers.fault.lock().unwrap() = Fault::Late;
    log.extend("a", "b", "late", None).unwrap();
    assert_replays(&log, &registers);
    assert_eq!(texts(&log).len(), 1);
    *registers.fault.lock().unwrap() = Fault::Other;
    let broken = log.extend("a", "b", "unknown", None);
    assert!(matches!(broken, Err(EventLogError::Broken(_))));
    // No evidence is made of a log that says something else than the registers.
    assert!(matches!(
        log.held(<[u8]>::len),
        Err(EventLogError::Broken(_))
    ));
}

#[test]
fn a_workload_cannot_fill_memory() {
    let log = EventLog::new(None);
    for _ in 0..EVENTS {
        log.extend("a", "b", "c", None).unwrap();
    }
    assert!(matches!(
        log.extend("a", "b", "c", None),
        Err(EventLogError::Full)
    ));
    let log = EventLog::new(None);
    let long = "x".repeat(6_000);
    let taken = (0..20).take_while(|_| log.extend("a", "b", &long, None).is_ok());
    assert_eq!(taken.count(), LOG_BYTES / 6_100);
}

/// A machine's log in a directory, and an event that is on its way into it.
struct Machine {
    directory: tempfile::TempDir,
    registers: Arc<Fake>,
}

impl Machine {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            registers: Arc::default(),
        }
    }

    fn registers(&self) -> Option<Arc<dyn Registers>> {
        Some(self.registers.clone())
    }

    fn open(&self) -> Result<EventLog, EventLogError> {
        EventLog::open(self.registers(), self.directory.path())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What is written ahead of an event now, its entry, and its digest.
    fn next(&self, content: &str) -> (Vec<u8>, Vec<u8>, [u8; REGISTER_BYTES]) {
        let event = AaelEvent {
            domain: "a",
            operation: "b",
            content,
        };
        let (bytes, digest) = entry(4, &event.data().unwrap());
        let length = fs::read(self.path(LOG)).unwrap_or_default().len() as u64;
        let before = self.registers.values.lock().unwrap()[3];
        let index = 4u32.to_le_bytes();
        let written = [&length.to_le_bytes()[..], &index, &before, &bytes].concat();
        (written, bytes, digest)
    }
}

#[test]
fn a_process_that_ended_amidst_an_event_is_followed_by_one_that_knows_what_was_done() {
    let machine = Machine::new();
    let open = || machine.open();
    open().unwrap().extend("a", "b", "first", None).unwrap();
    let ahead = machine.path(AHEAD);
    assert!(!ahead.exists());
    let (written, _, digest) = machine.next("next");
    let registers = &machine.registers;

    // It ended before the register, or before all of it was written ahead.
    for cut in [written.len(), written.len() - 1, 3] {
        fs::write(&ahead, &written[..cut]).unwrap();
        let log = open().unwrap();
        assert_eq!(texts(&log).len(), 1);
        assert_replays(&log, registers);
        assert!(!ahead.exists());
    }
    // Behind it.
    fs::write(&ahead, &written).unwrap();
    registers.extend(3, &digest).unwrap();
    let log = open().unwrap();
    assert_eq!(texts(&log).len(), 2);
    assert_replays(&log, registers);
    // Behind the log too.
    fs::write(&ahead, &written).unwrap();
    let log = open().unwrap();
    assert_eq!(texts(&log).len(), 2);
    assert_replays(&log, registers);
    // Somebody else extended the register.
    fs::write(&ahead, &written).unwrap();
    registers.values.lock().unwrap()[3] = [1; 48];
    assert!(matches!(open(), Err(EventLogError::Broken(_))));
}

#[test]
fn the_same_event_twice_is_in_the_log_twice_wherever_a_process_ended() {
    let machine = Machine::new();
    let log = machine.open().unwrap();
    log.extend("a", "b", "same", None).unwrap();
    let (written, bytes, digest) = machine.next("same");
    machine.registers.extend(3, &digest).unwrap();
    // Before the log has it, and in the middle of writing it there.
    for there in [0, 5, bytes.len()] {
        let first = fs::read(machine.path(LOG)).unwrap()[..bytes.len()].to_vec();
        fs::write(machine.path(LOG), [&first, &bytes[..there]].concat()).unwrap();
        fs::write(machine.path(AHEAD), &written).unwrap();
        let log = machine.open().unwrap();
        assert_eq!(texts(&log).len(), 2, "{there}");
        assert_replays(&log, &machine.registers);
    }
    // A log that lost something, or has another event there, is told.
    for other in [&bytes[..5], &[&bytes[..], b"x"].concat()] {
        fs::write(machine.path(AHEAD), &written).unwrap();
        fs::write(machine.path(LOG), other).unwrap();
        assert!(matches!(machine.open(), Err(EventLogError::Broken(_))));
    }
}

#[test]
fn processes_take_turns_and_see_what_the_others_logged() {
    const EACH: usize = 20;
    let machine = Machine::new();
    // A log that each process has opened has its own lock.
    std::thread::scope(|scope| {
        for process in 0..3 {
            let log = machine.open().unwrap();
            scope.spawn(move || {
                for event in 0..EACH {
                    let content = format!("{process} {event}");
                    log.extend("a", "b", &content, None).unwrap();
                }
            });
            let reader = EventLog::look(machine.registers(), machine.directory.path());
            scope.spawn(move || {
                for _ in 0..EACH {
                    reader.held(count).unwrap().unwrap();
                }
            });
        }
    });
    let log = machine.open().unwrap();
    assert_eq!(texts(&log).len(), 3 * EACH);
    assert_replays(&log, &machine.registers);
}

#[test]
fn who_reads_makes_and_changes_nothing() {
    let machine = Machine::new();
    let absent = machine.path("absent");
    let reader = EventLog::look(machine.registers(), &absent);
    assert!(texts(&reader).is_empty());
    assert!(!absent.exists());
    let refused = reader.extend("a", "b", "c", None);
    assert!(matches!(refused, Err(EventLogError::ReadOnly)));

    let reader = EventLog::look(machine.registers(), machine.directory.path());
    machine.open().unwrap().extend("a", "b", "c", None).unwrap();
    let (written, bytes, digest) = machine.next("next");
    fs::write(machine.path(AHEAD), &written).unwrap();
    machine.registers.extend(3, &digest).unwrap();
    // Evidence has what the register has, and who writes finishes it.
    assert_eq!(texts(&reader).len(), 2);
    assert_replays(&reader, &machine.registers);
    assert_eq!(fs::read(machine.path(AHEAD)).unwrap(), written);
    assert_eq!(fs::read(machine.path(LOG)).unwrap().len(), bytes.len() - 3);
    assert_eq!(texts(&machine.open().unwrap()).len(), 2);
}

/// The directory's group may open it and what is in it, but the lock.
#[test]
fn who_may_not_write_holds_up_nobody() {
    let machine = Machine::new();
    let log = machine.open().unwrap();
    let lock = fs::metadata(machine.path(LOCK)).unwrap();
    assert_eq!(lock.permissions().mode() & 0o777, 0o600);
    let [directory, entries] = [machine.directory.path().to_owned(), machine.path(LOG)];
    log.extend("a", "b", "first", None).unwrap();
    let held = [directory, entries].map(|path| {
        let file = fs::File::open(path).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        file
    });
    let began = Instant::now();
    log.extend("a", "b", "second", None).unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(texts(&log).len(), 2);
    drop(held);
}

#[test]
fn who_reads_without_the_lock_has_nothing_of_a_log_that_changed_meanwhile() {
    let machine = Machine::new();
    let log = machine.open().unwrap();
    log.extend("a", "b", "first", None).unwrap();
    let reader = EventLog::look(machine.registers(), machine.directory.path());
    // As to somebody who may not open it.
    fs::remove_file(machine.path(LOCK)).unwrap();
    assert_eq!(texts(&reader).len(), 1);
    let between = reader.held(|_| log.extend("a", "b", "second", None).unwrap());
    assert!(matches!(between, Err(EventLogError::Changed(_))));
    fs::remove_file(machine.path(LOCK)).unwrap();
    assert_eq!(texts(&reader).len(), 2);
    assert_replays(&reader, &machine.registers);
    assert!(!machine.path(LOCK).exists(), "who reads makes nothing");
}

#[test]
fn what_guest_components_have_on_their_way_is_left_to_them() {
    let machine = Machine::new();
    let theirs = machine.path(".wal_event_entry");
    fs::write(&theirs, b"theirs").unwrap();
    machine.open().unwrap().extend("a", "b", "c", None).unwrap();
    assert_eq!(fs::read(&theirs).unwrap(), b"theirs");
}

#[test]
fn without_registers_the_log_stands_alone() {
    let directory = tempfile::tempdir().unwrap();
    let log = EventLog::open(None, directory.path()).unwrap();
    assert!(!log.has_registers());
    log.extend("a", "b", "c", None).unwrap();
    drop(log);
    assert_eq!(
        texts(&EventLog::open(None, directory.path()).unwrap()).len(),
        1
    );
    fs::write(directory.path().join(LOG), b"no log").unwrap();
    assert!(EventLog::open(None, directory.path()).is_err());
}
