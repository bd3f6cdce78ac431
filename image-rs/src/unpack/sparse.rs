//! Sparse files as GNU tar writes them: the old header with a map in its tail, and PAX 0.0, 0.1 and 1.0.
//!
//! <https://www.gnu.org/software/tar/manual/html_section/Sparse-Formats.html>. All become a list of segments, checked
//! to lie in order inside the file and to be exactly what the archive holds of it.

use super::UnpackError;
use super::path::shown;
use super::pax::number;

/// Data of a sparse file: what is between segments is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What the PAX keys `GNU.sparse.*` of one entry say.
#[derive(Debug, Default, Clone)]
pub(super) struct PaxSparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    major: Option<u64>,
    minor: Option<u64>,
    map: Vec<Segment>,
    /// Of 0.0: an offset whose length is still to come.
    offset: Option<u64>,
}

impl PaxSparse {
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), UnpackError> {
        let read = |value| number(value, "sparse map");
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(read(value)?),
            b"major" => self.major = Some(read(value)?),
            b"minor" => self.minor = Some(read(value)?),
            b"offset" => self.offset = Some(read(value)?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or_else(unpaired)?;
                let length = read(value)?;
                self.map.push(Segment { offset, length });
            }
            b"map" => self.map = pairs(value.split(|byte| *byte == b','))?,
            // The map says it itself.
            b"numblocks" => {}
            key => {
                return Err(UnpackError::Kind {
                    entry: "extended header".to_owned(),
                    kind: format!("GNU.sparse.{}", shown(key)),
                });
            }
        }
        Ok(())
    }

    /// The map, where it stands in the header; `None` when it stands before the data (1.0).
    pub(super) fn map(&mut self) -> Result<Option<Vec<Segment>>, UnpackError> {
        match (self.major, self.minor) {
            (None | Some(0), _) if self.offset.is_none() => Ok(Some(std::mem::take(&mut self.map))),
            (None | Some(0), _) => Err(unpaired()),
            (Some(1), None | Some(0)) => Ok(None),
            (major, minor) => {
                let [major, minor] = [major, minor].map(Option::unwrap_or_default);
                Err(UnpackError::Kind {
                    entry: "extended header".to_owned(),
                    kind: format!("sparse {major}.{minor}"),
                })
            }
        }
    }
}

/// The map of 1.0 as far as it has been read: the count, then offsets and lengths, each on a line of its own.
#[derive(Debug, Default)]
pub(super) struct DataMap {
    text: Vec<u8>,
    newlines: usize,
}

impl DataMap {
    /// Takes the next block; the segments once the map is whole. What pads it to the block's end is not looked at.
    pub(super) fn add(&mut self, block: &[u8]) -> Result<Option<Vec<Segment>>, UnpackError> {
        self.newlines += block.iter().filter(|byte| **byte == b'\n').count();
        self.text.extend_from_slice(block);
        let mut lines = self.text.split(|byte| *byte == b'\n');
        let count: usize = number(lines.next().unwrap_or_default(), "sparse map")?;
        let wanted = count.saturating_mul(2).saturating_add(1);
        if self.newlines < wanted {
            return Ok(None);
        }
        pairs(lines.take(wanted - 1)).map(Some)
    }
}

fn pairs<'a>(mut words: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Segment>, UnpackError> {
    let mut map = Vec::new();
    while let Some(offset) = words.next().filter(|word| !word.is_empty()) {
        let offset = number(offset, "sparse map")?;
        let length = number(words.next().ok_or_else(unpaired)?, "sparse map")?;
        map.push(Segment { offset, length });
    }
    Ok(map)
}

/// Checks that the segments lie in order in a file of `size` bytes, and are `stored` bytes together.
pub(super) fn check(
    map: &[Segment],
    size: u64,
    stored: u64,
    name: &[u8],
) -> Result<(), UnpackError> {
    let refused = |reason| UnpackError::Sparse {
        entry: shown(name),
        reason,
    };
    let (mut end, mut sum) = (0_u64, 0_u64);
    for segment in map {
        let next = segment.offset.checked_add(segment.length);
        match next.filter(|next| segment.offset >= end && *next <= size) {
            Some(next) => end = next,
            None => {
                return Err(refused("its segments overlap, or lie outside of the file"));
            }
        }
        sum = sum.saturating_add(segment.length);
    }
    if sum == stored {
        Ok(())
    } else {
        Err(refused("its map does not describe the data in the archive"))
    }
}

fn unpaired() -> UnpackError {
    UnpackError::Archive("a sparse map has an offset without a length".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Segment = Segment {
        offset: 4096,
        length: 2,
    };
    const END: Segment = Segment {
        offset: 8192,
        length: 0,
    };

    fn pax(keys: &[(&str, &str)]) -> Result<Option<Vec<Segment>>, UnpackError> {
        let mut sparse = PaxSparse::default();
        for (key, value) in keys {
            sparse.set(key.as_bytes(), value.as_bytes())?;
        }
        sparse.map()
    }

    #[test]
    fn the_three_pax_formats_say_the_same() {
        let old = [
            ("size", "8192"),
            ("numblocks", "2"),
            ("offset", "4096"),
            ("numbytes", "2"),
            ("offset", "8192"),
            ("numbytes", "0"),
        ];
        assert_eq!(pax(&old).unwrap(), Some(vec![ONE, END]));
        assert_eq!(
            pax(&[("map", "4096,2,8192,0")]).unwrap(),
            Some(vec![ONE, END])
        );
        assert_eq!(pax(&[("major", "1"), ("minor", "0")]).unwrap(), None);
        let mut map = DataMap::default();
        assert_eq!(map.add(b"2\n4096\n2\n81").unwrap(), None);
        assert_eq!(map.add(b"92\n0\n\0\0").unwrap(), Some(vec![ONE, END]));
    }

    #[test]
    fn maps_that_do_not_fit_are_refused() {
        assert!(check(&[ONE, END], 8192, 2, b"a").is_ok());
        for (map, size, stored) in [
            (&[END, ONE][..], 8192, 2),
            (&[ONE, END], 8191, 2),
            (&[ONE, END], 8192, 3),
            (&[ONE, ONE], 8192, 4),
        ] {
            let refused = check(map, size, stored, b"a");
            assert!(matches!(refused, Err(UnpackError::Sparse { .. })));
        }
        let wide = Segment {
            offset: u64::MAX,
            length: 1,
        };
        assert!(check(&[wide], u64::MAX, 1, b"a").is_err());
    }

    #[test]
    fn what_we_do_not_know_is_named() {
        for keys in [&[("major", "2")][..], &[("colour", "red")]] {
            assert!(matches!(pax(keys), Err(UnpackError::Kind { .. })));
        }
        for keys in [
            &[("offset", "1")][..],
            &[("numbytes", "1")],
            &[("map", "1")],
        ] {
            assert!(matches!(pax(keys), Err(UnpackError::Archive(_))));
        }
        assert!(matches!(
            pax(&[("map", "-1,2")]),
            Err(UnpackError::Number(_))
        ));
    }
}
