//! The table of a story: its items, and the sealed tokens in them.

use std::sync::Arc;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use shared::domain::installation::{Installation, StandbyPair};
use shared::domain::redacted::Redacted;
use shared::domain::status::TokenVersion;
use shared::seal::pair::{PairRole, place};
use shared::seal::{Binding, DataKeys, Sealer};
use shared::table::Item;

use super::{SEALING_SECRET, World};

impl World {
    /// Every item of the table.
    ///
    /// # Panics
    /// If the table cannot be read.
    pub async fn items(&self) -> Vec<Item> {
        let scan =
            self.table.client.scan().table_name(&*self.table.name).consistent_read(true).into_paginator().items();
        scan.send().collect::<Result<_, _>>().await.expect("the table can be read")
    }

    /// Writes an item as it is.
    ///
    /// # Panics
    /// If the table cannot be written.
    pub async fn put(&self, item: Item) {
        let put = self.table.client.put_item().table_name(&*self.table.name).set_item(Some(item));
        put.send().await.expect("the table can be written");
    }

    /// Deletes an item.
    ///
    /// # Panics
    /// If the table cannot be written.
    pub async fn delete(&self, key: &str) {
        let delete = self.table.client.delete_item().table_name(&*self.table.name);
        delete.key("pk", AttributeValue::S(key.to_owned())).send().await.expect("the table can be written");
    }

    /// Opens the current refresh token of an installation. `None` if it has no refresh token.
    ///
    /// # Panics
    /// If the refresh token does not open.
    pub fn open_current(&self, stored: &Installation) -> Option<Redacted> {
        Some(self.open(stored, stored.version, PairRole::Current, stored.refresh_token()?))
    }

    /// Opens the sealed refresh token of a standby pair.
    ///
    /// # Panics
    /// If the pair has no refresh token, or if the refresh token does not open.
    pub fn open_standby(&self, stored: &Installation, standby: &StandbyPair) -> Redacted {
        let version = TokenVersion { generation: standby.generation, ..stored.version };
        let refresh = standby.pair.refresh.as_deref().expect("a refresh token");
        self.open(stored, version, PairRole::Standby, refresh)
    }

    fn open(&self, stored: &Installation, version: TokenVersion, role: PairRole, refresh: &[u8]) -> Redacted {
        let keys = DataKeys::parse(&self.secrets.get(SEALING_SECRET).expect("a sealing secret")).expect("keys");
        let sealer = Sealer::new(Binding::to_table(&self.table.name), Arc::new(keys));
        sealer.open(place(&stored.key(), version, role.refresh()), refresh).expect("it opens")
    }

    /// Returns true if `secret` is in the table in the clear. It is the positive control of the search for secrets.
    pub async fn tells(&self, secret: &str) -> bool {
        self.texts().await.iter().any(|text| holds(text, secret.as_bytes()))
    }

    /// Every text and every string of bytes in the table.
    pub(super) async fn texts(&self) -> Vec<Vec<u8>> {
        let mut texts = Vec::new();
        for item in self.items().await {
            for value in item.values() {
                collect(value, &mut texts);
            }
        }
        texts
    }
}

/// Every text and every string of bytes of a value.
fn collect(value: &AttributeValue, texts: &mut Vec<Vec<u8>>) {
    match value {
        AttributeValue::S(text) => texts.push(text.clone().into_bytes()),
        AttributeValue::B(bytes) => texts.push(bytes.as_ref().to_vec()),
        AttributeValue::Ss(all) => texts.extend(all.iter().map(|text| text.clone().into_bytes())),
        AttributeValue::Bs(all) => texts.extend(all.iter().map(Blob::as_ref).map(<[u8]>::to_vec)),
        AttributeValue::L(values) => values.iter().for_each(|value| collect(value, texts)),
        AttributeValue::M(values) => values.values().for_each(|value| collect(value, texts)),
        _ => {}
    }
}

pub(super) fn holds(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
