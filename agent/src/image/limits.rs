//! The owner's limits of images over the defaults.

use evidence::init_data::content::{self, ImageLimits};
use image_rs::PullConfig;
use image_rs::unpack::{Devices, Trusted};

/// Puts what init-data's `[image.limits]` says into the configuration of a pull.
pub(super) fn apply(mut config: PullConfig, limits: &ImageLimits) -> PullConfig {
    let wide = |value: &mut u64, limit: Option<u64>| *value = limit.unwrap_or(*value);
    // More than a machine can count is no limit.
    let narrow = |value: &mut usize, limit: Option<u64>| {
        *value = limit.map_or(*value, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    };
    let to = &mut config.limits;
    narrow(&mut to.manifest_bytes, limits.manifest_bytes);
    narrow(&mut to.layers, limits.layers);
    wide(&mut to.entries, limits.entries);
    narrow(&mut to.path_depth, limits.path_depth);
    narrow(&mut to.path_bytes, limits.path_bytes);
    wide(&mut to.header_bytes, limits.header_bytes);
    narrow(&mut to.xattr_bytes, limits.xattr_bytes);
    wide(&mut to.journal_bytes, limits.journal_bytes);
    wide(&mut to.compressed_bytes, limits.compressed_bytes);
    wide(&mut to.unpacked_bytes, limits.unpacked_bytes);
    wide(&mut to.file_bytes, limits.file_bytes);
    wide(&mut to.ratio, limits.ratio);
    wide(&mut to.ratio_floor_bytes, limits.ratio_floor_bytes);
    wide(&mut to.zstd_window_bytes, limits.zstd_window_bytes);
    config.devices = match limits.devices {
        None => config.devices,
        Some(content::Devices::Create) => Devices::Create,
        Some(content::Devices::Refuse) => Devices::Refuse,
    };
    config.trusted = match limits.trusted_xattrs {
        None => config.trusted,
        Some(content::TrustedXattrs::Keep) => Trusted::Keep,
        Some(content::TrustedXattrs::Refuse) => Trusted::Refuse,
    };
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use image_rs::Policy;

    #[test]
    fn what_is_not_written_keeps_its_default() {
        let default = PullConfig::new(Policy::reject());
        let limits = ImageLimits {
            entries: Some(7),
            layers: Some(3),
            devices: Some(content::Devices::Refuse),
            ..ImageLimits::default()
        };
        let config = apply(default.clone(), &limits);
        assert_eq!((config.limits.entries, config.limits.layers), (7, 3));
        assert_eq!(config.devices, Devices::Refuse);
        assert_eq!(config.trusted, default.trusted);
        assert_eq!(config.limits.ratio, default.limits.ratio);
    }
}
