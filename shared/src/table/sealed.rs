//! Reads and replaces sealed tokens for the rotation of a data key. These are the only writes of tokens that do not
//! change the version: the tokens stay the same, and only the key that seals them changes.

use super::installation::b;
use super::survey::Part;
use super::{Item, StoreError, Table, Update, s};
use crate::domain::installation::{Installation, SealedPair};

impl Table {
    /// A page of installations with their sealed tokens (strongly consistent). Reads the whole table, a megabyte at a
    /// time.
    pub async fn sealed(&self, from: Option<Item>) -> Result<Part<Installation>, StoreError> {
        let scan = self.client.scan().table_name(&*self.name).set_exclusive_start_key(from).consistent_read(true);
        let scan = scan.filter_expression("begins_with(pk, :kind)");
        let answer = scan.expression_attribute_values(":kind", s("installation#")).send().await?;
        let items = answer.items().iter().map(Installation::read).collect();
        Ok(Part { items, next: answer.last_evaluated_key })
    }

    /// Replaces the sealed tokens of `seen` by the same tokens sealed anew, if all of them are unchanged since they
    /// were read. So a pair that was committed or added in between stays. `standby` has one element for each standby
    /// pair. Returns false if the tokens were not replaced.
    ///
    /// # Errors
    /// [`StoreError`]: the write may or may not have been applied.
    pub async fn reseal(
        &self,
        seen: &Installation,
        pair: Option<&SealedPair>,
        standby: &[SealedPair],
    ) -> Result<bool, StoreError> {
        let mut replaced = Vec::new();
        if let (Some(new), Some(old)) = (pair, &seen.pair) {
            replaced.push(("access_token".to_owned(), &new.access, &old.access));
            let refresh = new.refresh.as_ref().zip(old.refresh.as_ref());
            replaced.extend(refresh.map(|(new, old)| ("refresh_token".to_owned(), new, old)));
        }
        for (place, (new, old)) in standby.iter().zip(seen.standby()).enumerate() {
            replaced.push((format!("standby[{place}].access_token"), &new.access, &old.pair.access));
            let refresh = new.refresh.as_ref().zip(old.pair.refresh.as_ref());
            replaced.extend(refresh.map(|(new, old)| (format!("standby[{place}].refresh_token"), new, old)));
        }
        if replaced.is_empty() {
            return Ok(true);
        }
        let mut write = Update::of_version(&seen.resource, seen.version);
        for (attribute, new, old) in replaced {
            write.when_equal(&attribute, b(old)).set(&attribute, b(new));
        }
        Ok(self.write(write).await?.is_applied())
    }
}
