//! What is asked of the pod's volumes while they are in use.

use agent_api::{ErrorCode, GuestError, agent};
use attestation_agent::api::MountRequest;

use super::Sandbox;
use crate::gate::Allowed;
use crate::path;
use crate::secure_mount::secure_mount;

const PHASE: &str = "volume";
/// The largest file system of ext4, in bytes.
const MAX_SIZE: u64 = 1 << 60;

impl Sandbox {
    /// Makes the file system of a volume larger, whose disk the host has made larger already. One that is so large
    /// stays.
    ///
    /// # Errors
    ///
    /// The path is of no volume on a disk, the volume is decrypted here, or the disk is smaller.
    pub async fn resize_volume(
        &self,
        request: &Allowed<agent::ResizeVolumeRequest>,
    ) -> Result<(), GuestError> {
        let point = path::lexical(PHASE, &request.volume_guest_path)?;
        let bytes = request.size;
        if !(1..=MAX_SIZE).contains(&bytes) {
            let text = format!("size {bytes}: use 1 to {MAX_SIZE} bytes");
            return Err(GuestError::new(ErrorCode::InvalidArgument, PHASE, text));
        }
        let Some(disk) = self.storages.clear_disk(&point).await else {
            let text = format!(
                "{} is no volume that grows: it is not on a disk, or it is encrypted",
                point.display()
            );
            return Err(GuestError::new(ErrorCode::FailedPrecondition, PHASE, text));
        };
        self.disks.rescan(&disk, bytes).await?;
        self.storages.grow(&point, bytes).await
    }

    /// `SecureMount` of the workload API: an encrypted file system on a disk of this guest.
    ///
    /// # Errors
    ///
    /// As [`secure_mount()`].
    pub async fn secure_mount(&self, request: &MountRequest) -> Result<(), GuestError> {
        secure_mount(&self.crypt, &self.images, request).await
    }
}
