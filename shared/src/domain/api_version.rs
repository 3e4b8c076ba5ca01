//! Versions of the platform's API, for the system's own calls.

use strum::VariantArray;

/// A version of the platform's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub enum ApiVersion {
    /// The API with dates as versions, such as `2021-07-28`.
    V2,
    /// The API of June 2026, with `Version: v3`.
    V3,
}

impl ApiVersion {
    /// The name in the table and in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V3 => "v3",
        }
    }

    /// Reads the name that [`ApiVersion::as_str`] writes; `None` for any other.
    pub fn parse(name: &str) -> Option<Self> {
        Self::VARIANTS.iter().copied().find(|version| version.as_str() == name)
    }

    pub(crate) fn other(self) -> Self {
        match self {
            Self::V2 => Self::V3,
            Self::V3 => Self::V2,
        }
    }
}

/// The setting `PLATFORM_API`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformApi {
    /// Begins with v2. If the platform says that a call does not exist in a version, the other version is used.
    Auto,
    /// This version only.
    Only(ApiVersion),
}

/// The system's own calls. Each has a version of its own, because the platform may move them one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub enum OwnCall {
    /// `POST /oauth/token`.
    Token,
    /// `POST /oauth/locationToken`, in v3 `/oauth/location-token`.
    Mint,
    /// `GET /oauth/installedLocations`, in v3 `/oauth/installed-locations`.
    List,
    /// `GET /marketplace/app/{appId}/installations`.
    Presence,
    /// `DELETE /marketplace/app/{appId}/installations`.
    Uninstall,
}

impl OwnCall {
    /// All calls, in the order of their numbers.
    pub const ALL: &[Self] = Self::VARIANTS;

    /// The name in the table and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Mint => "mint",
            Self::List => "list",
            Self::Presence => "presence",
            Self::Uninstall => "uninstall",
        }
    }
}
