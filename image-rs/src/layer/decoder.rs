//! The plain blob, decompressed: gzip with all its members, zstd with all its frames and what may be skipped.

use std::io::{self, BufRead, Read};
use std::sync::{Mutex, PoisonError};

use flate2::bufread::MultiGzDecoder;
use ocicrypt::media_type::Compression;
use zstd::zstd_safe::{DCtx, ResetDirective};

/// What the format of zstd has at least and at most, as powers of two.
const WINDOW_LOG: (u32, u32) = (10, 31);

/// The memory of zstd's decoders, which the layers of one image use one after the other. An allocator that gets a
/// window of 8 MiB back and has to find another may take a second one for it.
#[derive(Default)]
pub(crate) struct Windows(Mutex<Vec<DCtx<'static>>>);

impl Windows {
    pub(super) fn lend(&self) -> Window<'_> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Window {
            windows: self,
            context: spare,
        }
    }
}

/// The memory of one decoder; it goes back when the decoder is done.
pub(super) struct Window<'a> {
    windows: &'a Windows,
    context: Option<DCtx<'static>>,
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        let mut spare = self
            .windows
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        spare.extend(self.context.take());
    }
}

/// A decoder over the blob.
pub(super) enum Decoder<'a, B: BufRead> {
    None(B),
    Gzip(Box<MultiGzDecoder<B>>),
    Zstd(Box<zstd::Decoder<'a, B>>),
}

impl<'a, B: BufRead> Decoder<'a, B> {
    /// A decoder that looks back at most `cap` bytes, which is the memory that a stream can make it take.
    pub(super) fn new(
        compression: Compression,
        blob: B,
        cap: u64,
        window: &'a mut Window<'_>,
    ) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(blob),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(blob))),
            Compression::Zstd => {
                let context = window.context.get_or_insert_default();
                // The stream before may have ended in the middle.
                context
                    .reset(ResetDirective::SessionOnly)
                    .map_err(|code| io::Error::other(zstd::zstd_safe::get_error_name(code)))?;
                let mut decoder = zstd::Decoder::with_context(blob, context);
                decoder.window_log_max(window_log(cap))?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    pub(super) fn into_inner(self) -> B {
        match self {
            Self::None(blob) => blob,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

impl<B: BufRead> Read for Decoder<'_, B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(blob) => blob.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

fn window_log(bytes: u64) -> u32 {
    let log = bytes.max(1).next_power_of_two().trailing_zeros();
    log.clamp(WINDOW_LOG.0, WINDOW_LOG.1)
}

/// Whether a stream wants to look back further; the decoder says this by its text alone.
pub(super) fn wants_more_window(error: &io::Error) -> bool {
    error.to_string().contains("requires too much memory")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn decode(compression: Compression, blob: &[u8], window: u64) -> io::Result<Vec<u8>> {
        let windows = Windows::default();
        let mut lent = windows.lend();
        let mut decoder = Decoder::new(compression, blob, window, &mut lent)?;
        let mut decoded = Vec::new();
        decoder.read_to_end(&mut decoded)?;
        assert!(
            decoder.into_inner().is_empty(),
            "the blob is read to its end"
        );
        Ok(decoded)
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(text: &str) -> Vec<u8> {
        zstd::encode_all(text.as_bytes(), 1).unwrap()
    }

    /// A frame that decoders skip: zstd:chunked keeps its table of contents in some.
    fn skippable(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        [&[0x50 | number, 0x2a, 0x4d, 0x18], &length[..], bytes].concat()
    }

    #[test]
    fn a_window_that_a_stream_was_cut_off_in_serves_the_next() {
        let windows = Windows::default();
        let frame = zstd(&"as long as needs more than one read ".repeat(8000));
        let read = |blob: &[u8]| {
            let mut lent = windows.lend();
            let mut decoder = Decoder::new(Compression::Zstd, blob, 1 << 23, &mut lent).unwrap();
            decoder.read_to_end(&mut Vec::new())
        };
        assert!(read(&frame[..frame.len() - 5]).is_err());
        assert_eq!(read(&frame).unwrap(), 36 * 8000);
        let spare = windows.0.lock().unwrap().len();
        assert_eq!(spare, 1, "one after the other take one");
    }

    #[test]
    fn all_members_and_frames_are_read() {
        const MIB: u64 = 1 << 20;
        let members = [gzip("one "), gzip(""), gzip("two")].concat();
        assert_eq!(
            decode(Compression::Gzip, &members, MIB).unwrap(),
            b"one two"
        );
        let frames = [
            skippable(0, b"table"),
            zstd("one "),
            skippable(15, &[7; 70_000]),
            zstd(""),
            zstd("two"),
            skippable(1, b""),
            skippable(2, b"footer"),
        ];
        assert_eq!(
            decode(Compression::Zstd, &frames.concat(), MIB).unwrap(),
            b"one two"
        );
    }

    /// eStargz keeps its footer in an extra field, and `gzip` a name; peers have stumbled over both.
    #[test]
    fn all_fields_of_a_gzip_header_are_read() {
        let builder = flate2::GzBuilder::new()
            .extra([7; 30])
            .filename("layer.tar")
            .comment("x");
        let mut encoder = builder.write(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"one").unwrap();
        let mut blob = encoder.finish().unwrap();
        // With a checksum of the header itself.
        blob[3] |= 2;
        let header = 10 + 2 + 30 + "layer.tar\0x\0".len();
        let mut sum = flate2::Crc::new();
        sum.update(&blob[..header]);
        let sum = u16::try_from(sum.sum() & 0xffff).unwrap().to_le_bytes();
        blob.splice(header..header, sum);
        assert_eq!(decode(Compression::Gzip, &blob, 1 << 20).unwrap(), b"one");
    }

    #[test]
    fn what_is_cut_off_or_followed_by_something_else_is_an_error() {
        for (compression, blob) in [
            (Compression::Gzip, [gzip("one"), gzip("two")].concat()),
            (
                Compression::Zstd,
                [zstd("one"), skippable(3, b"12"), zstd("two")].concat(),
            ),
        ] {
            for cut in 1..4 {
                assert!(decode(compression, &blob[..blob.len() - cut], 1 << 20).is_err());
            }
            assert!(
                decode(
                    compression,
                    &[&blob, b"garbage".as_slice()].concat(),
                    1 << 20
                )
                .is_err()
            );
        }
    }

    #[test]
    fn a_window_is_held_to_its_cap() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(24).unwrap();
        encoder.write_all(&[0; 100]).unwrap();
        let blob = encoder.finish().unwrap();
        let error = decode(Compression::Zstd, &blob, 8 << 20).unwrap_err();
        assert!(wants_more_window(&error), "{error}");
        assert_eq!(
            decode(Compression::Zstd, &blob, 16 << 20).unwrap(),
            [0; 100]
        );
        assert_eq!(
            [
                window_log(0),
                window_log((8 << 20) + 1),
                window_log(u64::MAX >> 1)
            ],
            [10, 24, 31]
        );
    }
}
