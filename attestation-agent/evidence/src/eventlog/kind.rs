//! The types of events (TCG PC Client Platform Firmware Profile 1.06, section 10.4.1).

macro_rules! kinds {
    ($($variant:ident = $number:literal, $name:literal;)*) => {
        /// The type of an event.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "the names are the specification's")]
        pub enum EventKind {
            $($variant,)*
        }

        impl EventKind {
            /// The number in a log.
            #[must_use]
            pub const fn number(self) -> u32 {
                match self {
                    $(Self::$variant => $number,)*
                }
            }

            /// The name in claims.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            pub(super) const fn of_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    PrebootCert = 0x00, "EV_PREBOOT_CERT";
    PostCode = 0x01, "EV_POST_CODE";
    Unused = 0x02, "EV_UNUSED";
    NoAction = 0x03, "EV_NO_ACTION";
    Separator = 0x04, "EV_SEPARATOR";
    Action = 0x05, "EV_ACTION";
    EventTag = 0x06, "EV_EVENT_TAG";
    SCrtmContents = 0x07, "EV_S_CRTM_CONTENTS";
    SCrtmVersion = 0x08, "EV_S_CRTM_VERSION";
    CpuMicrocode = 0x09, "EV_CPU_MICROCODE";
    PlatformConfigFlags = 0x0a, "EV_PLATFORM_CONFIG_FLAGS";
    TableOfDevices = 0x0b, "EV_TABLE_OF_DEVICES";
    CompactHash = 0x0c, "EV_COMPACT_HASH";
    Ipl = 0x0d, "EV_IPL";
    IplPartitionData = 0x0e, "EV_IPL_PARTITION_DATA";
    NonhostCode = 0x0f, "EV_NONHOST_CODE";
    NonhostConfig = 0x10, "EV_NONHOST_CONFIG";
    NonhostInfo = 0x11, "EV_NONHOST_INFO";
    OmitBootDeviceEvents = 0x12, "EV_OMIT_BOOT_DEVICE_EVENTS";
    EfiEventBase = 0x8000_0000, "EV_EFI_EVENT_BASE";
    EfiVariableDriverConfig = 0x8000_0001, "EV_EFI_VARIABLE_DRIVER_CONFIG";
    EfiVariableBoot = 0x8000_0002, "EV_EFI_VARIABLE_BOOT";
    EfiBootServicesApplication = 0x8000_0003, "EV_EFI_BOOT_SERVICES_APPLICATION";
    EfiBootServicesDriver = 0x8000_0004, "EV_EFI_BOOT_SERVICES_DRIVER";
    EfiRuntimeServicesDriver = 0x8000_0005, "EV_EFI_RUNTIME_SERVICES_DRIVER";
    EfiGptEvent = 0x8000_0006, "EV_EFI_GPT_EVENT";
    EfiAction = 0x8000_0007, "EV_EFI_ACTION";
    EfiPlatformFirmwareBlob = 0x8000_0008, "EV_EFI_PLATFORM_FIRMWARE_BLOB";
    EfiHandoffTables = 0x8000_0009, "EV_EFI_HANDOFF_TABLES";
    EfiPlatformFirmwareBlob2 = 0x8000_000a, "EV_EFI_PLATFORM_FIRMWARE_BLOB2";
    EfiHandoffTables2 = 0x8000_000b, "EV_EFI_HANDOFF_TABLES2";
    EfiVariableBoot2 = 0x8000_000c, "EV_EFI_VARIABLE_BOOT2";
    EfiHcrtmEvent = 0x8000_0010, "EV_EFI_HCRTM_EVENT";
    EfiVariableAuthority = 0x8000_00e0, "EV_EFI_VARIABLE_AUTHORITY";
    EfiSpdmFirmwareBlob = 0x8000_00e1, "EV_EFI_SPDM_FIRMWARE_BLOB";
    EfiSpdmFirmwareConfig = 0x8000_00e2, "EV_EFI_SPDM_FIRMWARE_CONFIG";
}
