//! Reads and replaces sealed tokens for the rotation of a data key. These are the only writes of tokens that do not
//! change the version: the tokens stay the same, and only the key that seals them changes.

use std::collections::BTreeMap;

use super::installation::b;
use super::{Item, Page, StoreError, Table, Update, s};
use crate::domain::installation::{Installation, SealedPair, Source};

impl Table {
    /// A page of installations with their sealed tokens (strongly consistent). Reads the whole table, a megabyte at a
    /// time.
    pub async fn sealed(&self, from: Option<Item>) -> Result<Page<Result<Installation, StoreError>>, StoreError> {
        let scan = self.client.scan().table_name(&*self.name).set_exclusive_start_key(from).consistent_read(true);
        let scan = scan.filter_expression("begins_with(pk, :kind)");
        let answer = scan.expression_attribute_values(":kind", s("installation#")).send().await?;
        let items = answer.items().iter().map(Installation::read).collect();
        Ok(Page { items, next: answer.last_evaluated_key })
    }

    /// Replaces the sealed tokens of `seen` by `anew`: the same tokens, sealed under another key. Writes only if all
    /// of them are unchanged since they were read. So a pair that was committed or added in between stays. Returns
    /// false if the tokens were not replaced.
    ///
    /// # Errors
    /// [`StoreError`]: the write may or may not have been applied.
    pub async fn reseal(&self, seen: &Installation, anew: &Source) -> Result<bool, StoreError> {
        let old = seen.installed().map(|installed| tokens_of(&installed.source)).unwrap_or_default();
        let mut write = Update::of_version(&seen.resource, seen.version);
        let mut is_empty = true;
        for (attribute, new) in tokens_of(anew) {
            if let Some(old) = old.get(&attribute) {
                write.when_equal(&attribute, b(old)).set(&attribute, b(new));
                is_empty = false;
            }
        }
        Ok(is_empty || self.write(write).await?.is_applied())
    }
}

/// The sealed tokens, by the attributes in which they are stored.
pub(crate) fn tokens_of(source: &Source) -> BTreeMap<String, &[u8]> {
    match source {
        Source::Own { pair, standby } => {
            let standby = standby.iter().enumerate();
            let standby = standby.map(|(place, standby)| (format!("standby[{place}]."), &standby.pair));
            let pairs = pair.iter().map(|pair| (String::new(), pair)).chain(standby);
            let tokens = pairs.flat_map(|(prefix, SealedPair { access, refresh })| {
                let access = (format!("{prefix}access_token"), &*access.token);
                let refresh = refresh.as_deref().map(|refresh| (format!("{prefix}refresh_token"), refresh));
                [access].into_iter().chain(refresh)
            });
            tokens.collect()
        }
        Source::Minted { access, .. } => {
            access.iter().map(|access| ("access_token".to_owned(), &*access.token)).collect()
        }
    }
}
