//! `/dev/sev-guest`, on kernels whose configfs has no reports (before 6.7).
//!
//! `SNP_GET_EXT_REPORT` takes a request that points at a place for the report and at one for the host's
//! certificates. Source: Linux's `include/uapi/linux/sev-guest.h`; the message in the answer is
//! `MSG_REPORT_RSP` (AMD 56860, table 24).

#![expect(
    unsafe_code,
    reason = "an ioctl that the kernel defines has no safe form"
)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use evidence::snp::REPORT_BYTES;
use rustix::ioctl::{Updater, ioctl, opcode};

use super::REPORT_DATA_BYTES;
use super::platform::{Platform, Report};

/// The device.
pub const DEVICE: &str = "/dev/sev-guest";
/// Bytes for certificates: the most that the kernel takes, in whole pages.
const CERTIFICATES_BYTES: usize = 0x4000;
/// Bytes of an answer.
const ANSWER_BYTES: usize = 4000;
/// Where the report begins in an answer.
const REPORT_AT: usize = 0x20;

/// `struct snp_report_req`.
#[repr(C)]
struct Request {
    user_data: [u8; REPORT_DATA_BYTES],
    vmpl: u32,
    reserved: [u8; 28],
}

/// `struct snp_ext_report_req`.
#[repr(C)]
struct ExtendedRequest {
    data: Request,
    certs_address: u64,
    certs_len: u32,
}

/// `struct snp_guest_request_ioctl`.
#[repr(C)]
struct Call {
    msg_version: u8,
    req_data: u64,
    resp_data: u64,
    fw_error: u32,
    vmm_error: u32,
}

/// `SNP_GET_EXT_REPORT`.
const GET_EXT_REPORT: rustix::ioctl::Opcode = opcode::read_write::<Call>(b'S', 2);

/// The device of an SNP guest.
#[derive(Debug)]
pub struct SevGuest {
    device: PathBuf,
}

impl SevGuest {
    /// The device at this path.
    #[must_use]
    pub fn new(device: impl Into<PathBuf>) -> Self {
        Self {
            device: device.into(),
        }
    }

    /// Whether it is there.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.device.exists()
    }
}

impl Platform for SevGuest {
    fn report(&self, report_data: &[u8; REPORT_DATA_BYTES]) -> io::Result<Report> {
        let shown = self.device.display();
        let told = |cause: &dyn std::fmt::Display| io::Error::other(format!("{shown}: {cause}"));
        let device = OpenOptions::new().read(true).write(true).open(&self.device);
        let device = device.map_err(|cause| told(&cause))?;
        let mut certificates = vec![0_u8; CERTIFICATES_BYTES];
        let mut answer = [0_u8; ANSWER_BYTES];
        let mut request = request(report_data, &mut certificates);
        let mut call = Call {
            msg_version: 1,
            req_data: address(&raw mut request),
            resp_data: address(&raw mut answer),
            fw_error: 0,
            vmm_error: 0,
        };
        // SAFETY: the opcode is the kernel's for `Call`, and `request`, `answer` and `certificates`, to which it
        // points, are of the kernel's sizes and outlive the call.
        let done = unsafe {
            ioctl(
                device.as_fd(),
                Updater::<GET_EXT_REPORT, Call>::new(&mut call),
            )
        };
        done.map_err(|cause| {
            let (firmware, vmm) = (call.fw_error, call.vmm_error);
            told(&format!("{cause} (firmware {firmware:#x}, VMM {vmm:#x})"))
        })?;
        let outblob = report(&answer).map_err(|cause| told(&cause))?;
        Ok(Report {
            outblob: outblob.to_vec(),
            auxblob: certificates,
        })
    }

    /// SNP measures nothing while a guest runs.
    fn boot_log(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

fn request(report_data: &[u8; REPORT_DATA_BYTES], certificates: &mut [u8]) -> ExtendedRequest {
    ExtendedRequest {
        data: Request {
            user_data: *report_data,
            vmpl: 0,
            reserved: [0; 28],
        },
        certs_address: address(certificates.as_mut_ptr()),
        certs_len: u32::try_from(certificates.len()).unwrap_or(0),
    }
}

/// As the kernel takes it, on machines of 64 bits alone.
fn address<T>(of: *mut T) -> u64 {
    u64::try_from(of.expose_provenance()).unwrap_or(0)
}

/// The report in an answer.
fn report(answer: &[u8; ANSWER_BYTES]) -> Result<&[u8], String> {
    let word = |at: usize| {
        let word = answer.get(at..at + 4).and_then(|word| word.try_into().ok());
        word.map_or(u32::MAX, u32::from_le_bytes)
    };
    let (status, length) = (word(0), word(4));
    if status != 0 {
        return Err(format!("the firmware answers with status {status:#x}"));
    }
    if usize::try_from(length) != Ok(REPORT_BYTES) {
        return Err(format!(
            "a report of {length} bytes, and not of {REPORT_BYTES}"
        ));
    }
    answer
        .get(REPORT_AT..REPORT_AT + REPORT_BYTES)
        .ok_or_else(|| "the answer is too short".to_owned())
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn what_the_kernel_is_given_has_its_layout() {
        assert_eq!(GET_EXT_REPORT, 0xc020_5302);
        assert_eq!(
            (size_of::<Request>(), size_of::<ExtendedRequest>()),
            (96, 112)
        );
        assert_eq!(size_of::<Call>(), 32);
        let places = [
            offset_of!(ExtendedRequest, certs_address),
            offset_of!(ExtendedRequest, certs_len),
            offset_of!(Call, req_data),
            offset_of!(Call, resp_data),
            offset_of!(Call, fw_error),
            offset_of!(Call, vmm_error),
        ];
        assert_eq!(places, [96, 104, 8, 16, 24, 28]);
        let mut room = vec![0; CERTIFICATES_BYTES];
        let request = request(&[7; REPORT_DATA_BYTES], &mut room);
        assert_eq!(
            request.certs_address,
            room.as_ptr().expose_provenance() as u64
        );
        assert_eq!((request.data.user_data, request.data.vmpl), ([7; 64], 0));
        assert_eq!(request.certs_len, 0x4000);
    }

    #[test]
    fn an_answer_with_a_status_or_another_length_is_refused() {
        let mut answer = [0; ANSWER_BYTES];
        answer[4..8].copy_from_slice(&1184u32.to_le_bytes());
        answer[REPORT_AT] = 9;
        assert_eq!(report(&answer).unwrap()[0], 9);
        answer[0] = 0x16;
        assert!(report(&answer).unwrap_err().contains("0x16"));
        answer[0] = 0;
        answer[4] = 0;
        assert!(report(&answer).unwrap_err().contains("1184"));
    }

    #[test]
    fn a_guest_without_the_device_is_told_which_is_missing() {
        let none = SevGuest::new("/dev/sev-guest-that-is-not");
        assert!(!none.is_there());
        let error = none.report(&[0; REPORT_DATA_BYTES]).unwrap_err();
        assert!(
            error.to_string().contains("sev-guest-that-is-not"),
            "{error}"
        );
    }
}
