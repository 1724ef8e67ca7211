//! Inputs that the workloads read: made, not shipped, and the same each time.

use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

/// xorshift64: the same numbers on every machine.
struct Lot(u64);

impl Lot {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn word(&mut self) -> &'static str {
        const WORDS: [&str; 13] = [
            "amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbour", "island",
            "juniper", "kelp", "lagoon", "meadow",
        ];
        WORDS[self.below(13) as usize]
    }
}

/// An array of records, this many bytes or a little more.
pub fn json(path: &Path, bytes: u64) -> Result<()> {
    let mut file = Counted::new(path)?;
    let mut lot = Lot(0x0123_4567_89ab_cdef);
    file.line("[")?;
    let mut id = 0;
    while file.bytes < bytes {
        let comma = if id == 0 { "" } else { "," };
        file.line(&format!(
            "{comma}{{\"id\":{id},\"name\":\"{} {} {}\",\"price\":{}.{:02},\"tags\":[\"{}\",\"{}\"],\
             \"place\":{{\"city\":\"{}\",\"floor\":{},\"open\":{}}},\"note\":null}}",
            lot.word(),
            lot.word(),
            lot.below(1_000_000),
            lot.below(1000),
            lot.below(100),
            lot.word(),
            lot.word(),
            lot.word(),
            lot.below(40),
            lot.below(2) == 0,
        ))?;
        id += 1;
    }
    file.line("]")?;
    file.finish()
}

/// A document of nested elements with attributes.
pub fn xml(path: &Path, bytes: u64) -> Result<()> {
    let mut file = Counted::new(path)?;
    let mut lot = Lot(0xfedc_ba98_7654_3210);
    file.line("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<catalogue>")?;
    let mut id = 0;
    while file.bytes < bytes {
        file.line(&format!(
            "<item id=\"i{id}\" kind=\"{}\"><title>{} {}</title><price unit=\"EUR\">{}</price>\
             <p>{} &amp; {} <b>{}</b> {}</p></item>",
            lot.word(),
            lot.word(),
            lot.below(100_000),
            lot.below(1000),
            lot.word(),
            lot.word(),
            lot.word(),
            lot.word(),
        ))?;
        id += 1;
    }
    file.line("</catalogue>")?;
    file.finish()
}

/// 300 000 rows (or fewer), an index, queries, updates and deletions.
pub fn sql(path: &Path, rows: u64) -> Result<()> {
    let text = format!(
        "PRAGMA temp_store=MEMORY;
CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, kind INTEGER, price REAL, note TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < {rows})
INSERT INTO item SELECT i, 'item ' || (i * 7919 % {rows}), i % 97, i * 0.37, printf('note %08d of %s', i, hex(i)) FROM n;
CREATE INDEX by_name ON item(name);
CREATE TABLE total AS SELECT kind, group_concat(substr(name, 6), ',') AS names, sum(price) AS price FROM item GROUP BY kind;
SELECT count(*), sum(length(names)), round(sum(price)) FROM total;
SELECT count(DISTINCT upper(name) || substr(note, 6, 4)) FROM item;
UPDATE item SET note = replace(note, 'note', 'remark') WHERE kind < 31;
DELETE FROM item WHERE kind > 61;
SELECT count(*), sum(length(note)) FROM item;
SELECT a.name FROM item a JOIN item b ON b.name = a.name WHERE a.id % 9973 = 1 ORDER BY a.name LIMIT 5;
"
    );
    std::fs::write(path, text)
}

/// C++ that includes every header and instantiates templates for this many
/// types.
pub fn cpp(path: &Path, types: u64) -> Result<()> {
    let mut file = Counted::new(path)?;
    file.line("#include <bits/stdc++.h>")?;
    for i in 0..types {
        file.line(&format!(
            "struct T{i} {{ long id; std::string name; std::vector<double> parts;
  bool operator<(const T{i} &o) const {{ return std::tie(id, name) < std::tie(o.id, o.name); }} }};
long use{i}(std::istream &in) {{
  std::map<std::string, std::vector<T{i}>> groups; std::set<T{i}> all; std::unordered_map<long, std::shared_ptr<T{i}>> by;
  for (T{i} t; in >> t.id >> t.name;) {{ all.insert(t); groups[t.name].push_back(t); by[t.id] = std::make_shared<T{i}>(t); }}
  std::vector<T{i}> list(all.begin(), all.end());
  std::stable_sort(list.begin(), list.end(), [](const T{i} &a, const T{i} &b) {{ return b < a; }});
  std::function<long(const T{i} &)> size = [&](const T{i} &t) {{ return long(groups[t.name].size() + by.count(t.id)); }};
  std::variant<long, T{i}> last = list.empty() ? std::variant<long, T{i}>(0L) : std::variant<long, T{i}>(list.back());
  return std::accumulate(list.begin(), list.end(), long(last.index()), [&](long n, const T{i} &t) {{ return n + size(t); }});
}}"
        ))?;
    }
    file.line("std::regex word(\"(a|b)*c[d-f]+\");")?;
    file.finish()
}

/// What [`xml`] writes, for `xmllint --schema`.
pub fn schema(path: &Path) -> Result<()> {
    let text = r#"<?xml version="1.0" encoding="UTF-8"?>
<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">
  <xs:element name="catalogue"><xs:complexType><xs:sequence>
    <xs:element name="item" minOccurs="0" maxOccurs="unbounded"><xs:complexType>
      <xs:sequence>
        <xs:element name="title" type="xs:string"/>
        <xs:element name="price"><xs:complexType><xs:simpleContent>
          <xs:extension base="xs:decimal"><xs:attribute name="unit" type="xs:string" use="required"/></xs:extension>
        </xs:simpleContent></xs:complexType></xs:element>
        <xs:element name="p"><xs:complexType mixed="true"><xs:sequence>
          <xs:element name="b" type="xs:string" minOccurs="0" maxOccurs="unbounded"/>
        </xs:sequence></xs:complexType></xs:element>
      </xs:sequence>
      <xs:attribute name="id" type="xs:ID" use="required"/>
      <xs:attribute name="kind" type="xs:NCName" use="required"/>
    </xs:complexType></xs:element>
  </xs:sequence></xs:complexType></xs:element>
</xs:schema>
"#;
    std::fs::write(path, text)
}

/// Reads records, makes objects of them, groups, sorts, formats, searches and
/// counts.
pub fn python(path: &Path, rounds: u64) -> Result<()> {
    let text = format!(
        "import collections, json, re

class Item:
    def __init__(self, name, kind, price):
        self.name, self.kind, self.price = name, kind, price

    def line(self):
        return '%-20s %3d %8.2f' % (self.name, self.kind, self.price)

source = json.dumps([
    {{'name': 'item %d' % (i * 7919 % 20011), 'kind': i % 97, 'price': i * 0.37, 'tags': ['t%d' % (i % 13)]}}
    for i in range(20000)])
pair = re.compile(r'(\\w+) (\\d+)')
total = 0
for turn in range({rounds}):
    rows = json.loads(source)
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row['kind']].append(Item(row['name'], row['kind'], row['price']))
    report = '\\n'.join(
        item.line() for kind in sorted(groups) for item in sorted(groups[kind], key=lambda item: item.price))
    endings = collections.Counter(number[-2:] for _, number in pair.findall(report))
    total += sum(float(line.split()[-1]) for line in report.splitlines())
    total += len(json.dumps(rows)) + endings.most_common(1)[0][1]
print(round(total))
"
    );
    std::fs::write(path, text)
}

struct Counted {
    file: BufWriter<File>,
    bytes: u64,
}

impl Counted {
    fn new(path: &Path) -> Result<Counted> {
        let file = BufWriter::new(File::create(path)?);
        Ok(Counted { file, bytes: 0 })
    }

    fn line(&mut self, text: &str) -> Result<()> {
        self.bytes += text.len() as u64 + 1;
        writeln!(self.file, "{text}")
    }

    fn finish(mut self) -> Result<()> {
        self.file.flush()
    }
}
