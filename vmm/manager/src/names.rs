//! The names of guests and groups, in place of the allocator's numbers.

use std::collections::BTreeMap;

use allocator::{GroupId, GuestId};

/// Who is called how.
#[derive(Debug, Clone, Default)]
pub struct Names {
    pub(super) guests: BTreeMap<GuestId, String>,
    pub(super) groups: BTreeMap<GroupId, String>,
}

impl Names {
    /// `text` with each `guest N` and `group N` called by its name. Takes time for the text's length, not for the
    /// number of guests.
    pub fn put_into(&self, text: &str) -> String {
        let mut named = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = ["guest ", "group "]
            .iter()
            .filter_map(|word| rest.find(word))
            .min()
        {
            let (before, from) = rest.split_at(at);
            let (word, after) = from.split_at("guest ".len());
            let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, after) = after.split_at(digits);
            named.push_str(before);
            match self.name(word, number) {
                Some(name) => named.push_str(&name),
                None => {
                    named.push_str(word);
                    named.push_str(number);
                }
            }
            rest = after;
        }
        named.push_str(rest);
        named
    }

    fn name(&self, word: &str, number: &str) -> Option<String> {
        match word {
            "guest " => self.guests.get(&GuestId::new(number.parse().ok()?)).cloned(),
            _ => {
                let name = self.groups.get(&GroupId::new(number.parse().ok()?))?;
                Some(format!("group {name}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_becomes_its_own_name() {
        let names = Names {
            guests: [
                (GuestId::new(1), "web".to_owned()),
                (GuestId::new(12), "group 3".to_owned()),
            ]
            .into(),
            groups: [(GroupId::new(3), "front".to_owned())].into(),
        };
        assert_eq!(
            names
                .put_into("guest 12 and guest 1 of group 3 beside guest 123, guest  and group 4: the guests"),
            "group 3 and web of group front beside guest 123, guest  and group 4: the guests"
        );
        // As the allocator writes them.
        let text = format!("{} pays {}", GuestId::new(1), GroupId::new(3));
        assert_eq!(names.put_into(&text), "web pays group front");
        assert_eq!(names.put_into(""), "");
    }
}
