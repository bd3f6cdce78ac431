//! Merkle trees of transparency logs (RFC 9162 §2.1): the root that an entry's path leads to.

use sha2::{Digest as _, Sha256};

/// The hash of a leaf or of a node.
pub(super) type Hash = [u8; 32];

/// Cap on the hashes of a path: a tree of more than 2⁶³ leaves is none.
pub(super) const PATH_MAX: usize = 63;

/// The hash of an entry.
pub(super) fn leaf(entry: &[u8]) -> Hash {
    Sha256::new()
        .chain_update([0])
        .chain_update(entry)
        .finalize()
        .into()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    let hash = Sha256::new().chain_update([1]);
    hash.chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// The root of the tree of `size` leaves that has `leaf` at `index`; `None` when the path has another length.
pub(super) fn root(leaf: Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    let (mut position, mut last, mut hash) = (index, size - 1, leaf);
    for sibling in path {
        if last == 0 {
            return None;
        }
        if position & 1 == 1 || position == last {
            hash = node(sibling, &hash);
            // Where the tree is not full, a node is its parent's only child.
            while position & 1 == 0 && position != 0 {
                position >>= 1;
                last >>= 1;
            }
        } else {
            hash = node(&hash, sibling);
        }
        position >>= 1;
        last >>= 1;
    }
    (last == 0).then_some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The root, and the path of `index`, straight from the definition (RFC 9162 §2.1.1 and §2.1.3.1).
    fn tree(leaves: &[Hash], index: usize) -> (Hash, Vec<Hash>) {
        if leaves.len() == 1 {
            return (leaves[0], Vec::new());
        }
        let middle = leaves.len().next_power_of_two() / 2;
        let (left, right) = leaves.split_at(middle);
        if index < middle {
            let ((hash, mut path), other) = (tree(left, index), tree(right, 0).0);
            path.push(other);
            (node(&hash, &other), path)
        } else {
            let ((hash, mut path), other) = (tree(right, index - middle), tree(left, 0).0);
            path.push(other);
            (node(&other, &hash), path)
        }
    }

    #[test]
    fn every_leaf_of_every_small_tree_leads_to_its_root_and_to_no_other() {
        for size in 1..20_usize {
            let leaves: Vec<Hash> = (0..size)
                .map(|at| leaf(&[u8::try_from(at).unwrap()]))
                .collect();
            for index in 0..size {
                let (expected, path) = tree(&leaves, index);
                let at = |index: usize, path: &[Hash]| {
                    root(leaves[index], index as u64, size as u64, path)
                };
                assert_eq!(at(index, &path), Some(expected), "{index} of {size}");
                let longer = [path.as_slice(), &[[0; 32]]].concat();
                assert_eq!(at(index, &longer), None);
                if size > 1 {
                    assert_eq!(at(index, &path[..path.len() - 1]), None);
                    assert_ne!(at((index + 1) % size, &path), Some(expected));
                }
            }
        }
        assert_eq!(root([0; 32], 1, 1, &[]), None);
    }
}
