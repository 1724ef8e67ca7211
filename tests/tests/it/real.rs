//! Real programs: the same output and status as without leakscope, and the
//! same definite leaks as memcheck finds.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use leakscope_e2e::expect::Amount;
use leakscope_e2e::run::Job;
use leakscope_e2e::{Fixture, Outcome, Section, build, memcheck};
use leakscope_testkit::{Need, need};
use libtest_mimic::Trial;

use crate::programs::{can_record, folder};
use crate::trial;

/// A program with what it needs, and how it is called.
type Case = (&'static str, &'static [&'static str], fn() -> Job);

/// Programs that must behave as without leakscope.
const SAME: [Case; 17] = [
    ("sqlite3", &["sqlite3"], sqlite3),
    ("jq", &["jq"], jq),
    ("python3", &["python3"], || python3("pymalloc")),
    ("python3_malloc", &["python3"], || python3("malloc")),
    ("python3_processes", &["python3"], python3_processes),
    ("git", &["git"], git),
    ("redis", &["redis-server", "redis-cli"], redis),
    ("xmllint", &["xmllint"], xmllint),
    ("nginx", &["nginx"], nginx),
    ("rustc", &["rustc"], rustc),
    ("rustfmt", &["rustfmt"], rustfmt),
    ("cc", &["cc"], cc),
    ("perl", &["perl"], perl),
    ("sort", &["sort"], sort),
    ("shell", &["sh"], shell),
    ("bash", &["bash"], bash),
    ("leakscope", &[], leakscope),
];

/// Programs whose definite leaks are compared with memcheck's. Those with
/// the most are first: perl forgets on purpose, and so does gcc's driver.
const COMPARED: [Case; 6] = [
    ("perl", &["perl"], perl),
    ("cc", &["cc"], || Job::new(["cc", "-v"])),
    ("sqlite3", &["sqlite3"], sqlite3),
    ("xmllint", &["xmllint"], xmllint),
    ("jq", &["jq"], || {
        Job::new(["jq", "-n", "[range(101)] | map(. * 2) | add"])
    }),
    ("sort", &["sort"], sort),
];

/// Allocators that are preloaded into a program: file and where Debian has it.
const ALLOCATORS: [(&str, &str); 3] = [
    ("jemalloc", "libjemalloc.so.2"),
    ("mimalloc", "libmimalloc.so.2.0"),
    ("tcmalloc", "libtcmalloc_minimal.so.4"),
];

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, needs, job) in SAME {
        let name = format!("real::same::{name}");
        trials.push(trial(name, move || same(needs, job)));
    }
    for (name, needs, job) in COMPARED {
        let name = format!("real::memcheck::{name}");
        trials.push(trial(name, move || same_leaks(needs, job)));
    }
    for (name, file) in ALLOCATORS {
        let name = format!("real::allocator::{name}");
        trials.push(trial(name, move || allocator(file)));
    }
    trials
}

fn has_all(needs: &'static [&'static str]) -> bool {
    can_record() && needs.iter().all(|name| need(Need::Program(name)))
}

fn same(needs: &'static [&'static str], job: fn() -> Job) -> Outcome {
    if !has_all(needs) {
        return Ok(());
    }
    let job = job();
    let native = job.run()?;
    let recorded = job.run_recorded(&["--quiet"])?;
    let mut wrong = String::new();
    if native.code() != recorded.done.code() {
        let (was, is) = (native.code(), recorded.done.code());
        let _ = writeln!(wrong, "exit status is {is}, without leakscope {was}");
    }
    if native.stdout != recorded.done.stdout {
        let _ = writeln!(
            wrong,
            "stdout differs:\n{:.2000}\nwithout leakscope:\n{:.2000}",
            String::from_utf8_lossy(&recorded.done.stdout),
            String::from_utf8_lossy(&native.stdout)
        );
    }
    if native.stdout.is_empty() {
        let _ = writeln!(
            wrong,
            "the program itself writes nothing: {}",
            String::from_utf8_lossy(&native.stderr)
        );
    }
    for section in &recorded.sections {
        let dropped = section.number("/coverage/dropped_events");
        if dropped != 0 {
            let _ = writeln!(wrong, "{dropped} events dropped in {}", section.at("/exe"));
        }
        // rustc brings jemalloc inside its executable, which no preloaded
        // library can stand before: then the report must say so.
        let recorded = section.number("/heap/allocations") > 0;
        let notices = section.at("/notices").to_string();
        if !recorded && section.at("/exit/code") == 0 && !notices.contains("own-allocator") {
            let exe = section.at("/exe");
            let _ = writeln!(wrong, "nothing recorded in {exe}: {notices}");
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&recorded.done.stderr);
    Err(format!(
        "{wrong}stderr: {stderr:.2000}\nagain: {}",
        recorded.again
    ))
}

fn same_leaks(needs: &'static [&'static str], job: fn() -> Job) -> Outcome {
    if !has_all(needs) || !need(Need::Program("valgrind")) {
        return Ok(());
    }
    let mut job = job();
    // valgrind and leakscope must meet the same executable, not a wrapper.
    job.argv[0] = on_path(&job.argv[0]).into();
    let argv: Vec<&Path> = job.argv.iter().map(Path::new).collect();
    let theirs = memcheck::definite_records(&argv, &job.stdin)?;
    let recorded = job.run_recorded(&["--quiet", "--show", "all", "--top", "0"])?;
    let section = recorded.sections.first().ok_or("no section")?;
    let mut ours: Vec<memcheck::Record> = section
        .leaks()
        .iter()
        .filter(|leak| leak["kind"] == "definite")
        .map(|leak| {
            let bytes = |value: &serde_json::Value| value["bytes"].as_u64().unwrap_or(0);
            let blocks = leak["blocks"].as_u64().unwrap_or(0);
            (blocks, bytes(leak) + bytes(&leak["indirect"]))
        })
        .collect();
    ours.sort_unstable();
    if ours == theirs {
        return Ok(());
    }
    let only = |a: &[memcheck::Record], b: &[memcheck::Record]| -> Vec<memcheck::Record> {
        a.iter().filter(|r| !b.contains(r)).copied().collect()
    };
    Err(format!(
        "definite records (blocks, bytes with indirect) differ; only memcheck: {:?}; only leakscope: {:?}\n{}again: {}",
        only(&theirs, &ours),
        only(&ours, &theirs),
        section.shown(),
        recorded.again
    ))
}

fn on_path(name: &std::ffi::OsStr) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
        .unwrap_or_else(|| name.into())
}

/// A program on another allocator that the user preloads: alive, and every
/// block is found.
fn allocator(file: &'static str) -> Outcome {
    let Some(library) = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"]
        .iter()
        .map(|dir| Path::new(dir).join(file))
        .find(|p| p.exists())
    else {
        need(Need::Program(file));
        return Ok(());
    };
    if !can_record() {
        return Ok(());
    }
    for name in [
        "alloc_malloc.c",
        "alloc_aligned.c",
        "alloc_threads.c",
        "chain_4.c",
        "end_fork.c",
        "new_all_forms.cc",
        "new_reused.cc",
    ] {
        let source = build::programs().join(name);
        let name = name.split('.').next().unwrap_or(name);
        let fixture = Fixture::read(&source)?;
        let folder = folder();
        std::fs::create_dir_all(&folder).map_err(|e| format!("create {folder:?}: {e}"))?;
        let built = build::build(&fixture, &folder)?;
        let job = Job::new([&built.path]).env("LD_PRELOAD", &library);
        let native = job.run()?;
        let recorded = job.run_recorded(&["--quiet"])?;
        if native.code() != recorded.done.code() || native.stdout != recorded.done.stdout {
            return Err(format!(
                "{name}: not as without leakscope: {}",
                recorded.again
            ));
        }
        let section = recorded.sections.first().ok_or("no section")?;
        let found = lost_by(section, name);
        let wanted = loss_of(&fixture);
        if found != wanted {
            return Err(format!(
                "{name}: lost are {found:?}, not {wanted:?}\n{}again: LD_PRELOAD={} {}",
                section.shown(),
                library.display(),
                recorded.again
            ));
        }
    }
    Ok(())
}

/// Bytes and blocks lost (directly or not) by stacks that pass through the
/// program: the allocator's own leaks are its own. Direct and indirect are
/// one sum, since fresh blocks of some allocators still hold links of its
/// free lists.
fn lost_by(section: &Section, program: &str) -> (u64, u64) {
    let through = |leak: &&serde_json::Value| {
        let frames = leak["stack"].as_array().map_or(&[][..], Vec::as_slice);
        let inside = |f: &serde_json::Value| {
            let module = f["module"].as_str().unwrap_or_default();
            module.ends_with(&format!("/{program}"))
        };
        ["definite", "indirect"]
            .iter()
            .any(|kind| leak["kind"] == *kind)
            && frames.iter().any(inside)
    };
    let leaks = section.leaks().iter().filter(through);
    leaks.fold((0, 0), |sum, leak| {
        let number = |name: &str| leak[name].as_u64().unwrap_or(0);
        (sum.0 + number("bytes"), sum.1 + number("blocks"))
    })
}

/// The same of a fixture's first section, as its header has it.
fn loss_of(fixture: &Fixture) -> (u64, u64) {
    let kinds = fixture.sections.first().map_or(&[][..], |(_, l)| &l.0[..]);
    kinds
        .iter()
        .filter(|(kind, _)| kind == "definite" || kind == "indirect")
        .fold((0, 0), |sum, (_, amount)| match amount {
            Amount::Exactly(bytes, blocks) => (sum.0 + bytes, sum.1 + blocks),
            _ => sum,
        })
}

// ---- the programs --------------------------------------------------------------

fn script(text: &str) -> Job {
    Job::new(["sh", "-euc", text])
}

fn sqlite3() -> Job {
    let sql = "create table t(id integer primary key, name text, size real);
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 5003)
            insert into t select i, printf('name %d', i % 211), i * 0.5 from n;
        create index by_name on t(name);
        select name, count(*), sum(size) from t group by name order by 3 desc limit 7;
        update t set name = upper(name) where id % 3 = 0;
        delete from t where id % 7 = 0;
        select count(*), min(name), max(size) from t;
        select group_concat(id) from (select id from t where name like 'NAME 1%' order by id limit 29);";
    Job::new(["sqlite3", ":memory:"]).stdin(sql)
}

fn jq() -> Job {
    let mut json = String::from("[");
    for i in 0..2003 {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(
            json,
            "{comma}{{\"id\":{i},\"tags\":[\"a{}\",\"b\"],\"n\":{}.5}}",
            i % 17,
            i * 3
        );
    }
    json.push(']');
    let filter = "group_by(.tags[0]) | map({tag: .[0].tags[0], sum: (map(.n) | add), ids: (map(.id) | length)})";
    Job::new(["jq", filter]).stdin(json)
}

fn python3(allocator: &str) -> Job {
    let code = "
import json, re, collections, threading
words = [f'w{i % 331}' for i in range(20011)]
count = collections.Counter(words)
data = {w: {'n': n, 'l': [n] * 7} for w, n in count.items()}
text = json.dumps(data, sort_keys=True)
assert json.loads(text) == data
results = []
def work(k):
    results.append(sum(len(m) for m in re.findall(r'w\\d+', text[:50021])) + k)
threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
[t.start() for t in threads]; [t.join() for t in threads]
try:
    raise ValueError('expected')
except ValueError as e:
    print(e)
print(len(text), sorted(results), count.most_common(3))
raise SystemExit(7)
";
    Job::new(["python3", "-I", "-c", code])
        .env("PYTHONMALLOC", allocator)
        .env("PYTHONHASHSEED", "0")
}

fn python3_processes() -> Job {
    let code = "
import multiprocessing, subprocess, os
def square(x): return x * x
if __name__ == '__main__':
    with multiprocessing.get_context('fork').Pool(3) as pool:
        print(sum(pool.map(square, range(101))))
    print(subprocess.run(['sh', '-c', 'echo from the shell; exit 5'], capture_output=True))
    pid = os.fork()
    if pid == 0:
        os._exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";
    Job::new(["python3", "-I", "-c", code])
}

fn git() -> Job {
    script(
        "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b
        export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        export GIT_AUTHOR_DATE='2024-01-02T03:04:05Z' GIT_COMMITTER_DATE='2024-01-02T03:04:05Z'
        git init --quiet --initial-branch=main work; cd work
        for i in 1 2 3 4 5; do seq 1 $((i * 97)) >file$i; git add file$i; git commit --quiet -m \"commit $i\"; done
        git mv file1 renamed; sed -i s/7/seven/ file3; git commit --quiet -a -m change
        git log --stat --format='%H %s'; git diff HEAD~2 | tail -n 20; git blame -s file3 | tail -n 5
        git gc --quiet; git fsck --strict; git cat-file --batch-all-objects --batch-check | sort | tail -n 5",
    )
}

fn redis() -> Job {
    script(
        "redis-server --port 0 --unixsocket $PWD/s --save '' --daemonize no --logfile $PWD/log --dir $PWD &
        until redis-cli -s ./s ping >/dev/null 2>&1; do :; done
        c() { redis-cli -s ./s \"$@\"; }
        i=0; while [ $i -lt 53 ]; do echo \"SET key:$i value-$i\"; i=$((i + 1)); done | c >/dev/null
        c dbsize; c lpush list a b c; c lrange list 0 -1; c hset h f v g w; c hgetall h
        c eval 'return redis.call(\"get\", KEYS[1])' 1 key:41; c append key:3 xyz; c del key:1 key:2
        c flushall; c dbsize; c shutdown nosave || true; wait; echo \"server: $?\"",
    )
}

fn xml() -> String {
    let mut xml = String::from("<?xml version=\"1.0\"?><catalog>");
    for i in 0..1009 {
        let _ = write!(
            xml,
            "<item id=\"i{i}\"><name>n &amp; {}</name><size>{}</size></item>",
            i % 13,
            i * 7
        );
    }
    xml + "</catalog>"
}

fn xmllint() -> Job {
    Job::new(["xmllint", "--format", "-"]).stdin(xml())
}

fn nginx() -> Job {
    script(
        "cat >nginx.conf <<END
daemon off; pid $PWD/nginx.pid; error_log $PWD/error.log; worker_processes 2;
events { worker_connections 64; }
http { access_log off; client_body_temp_path $PWD/b; proxy_temp_path $PWD/p; fastcgi_temp_path $PWD/f;
  uwsgi_temp_path $PWD/u; scgi_temp_path $PWD/c;
  server { listen unix:$PWD/http; location / { return 200 hello; } } }
END
        nginx -p $PWD -c nginx.conf -e $PWD/error.log & server=$!
        until [ -s nginx.pid ] && [ -S http ]; do :; done
        if command -v curl >/dev/null; then curl -s --unix-socket ./http http://x/; else printf hello; fi; echo
        kill -QUIT $server; wait $server; echo \"server: $?\"",
    )
}

fn rustc() -> Job {
    script(
        "echo 'use std::collections::HashMap; fn main() { let m: HashMap<u8, u8> = (0..7).map(|i| (i, i)).collect(); println!(\"{}\", m.len()); }' >a.rs
        rustc --edition 2021 --emit=metadata -o a.rmeta a.rs && [ -s a.rmeta ] && echo compiled
        rustc -O nonsense.rs 2>/dev/null || echo \"refused: $?\"",
    )
}

fn rustfmt() -> Job {
    let code =
        "fn   main( ) { let x=vec![1,2,3]; for i in &x { if *i>1 { println!(\"{}\",i) } } }\n"
            .to_owned();
    Job::new(["rustfmt", "--edition", "2021"]).stdin(code)
}

fn cc() -> Job {
    script(
        "printf '#include <stdio.h>\\n#include <stdlib.h>\\nint main(void) { puts(\"built\"); return 3; }\\n' >a.c
        cc -O2 -g -Wall -o a a.c; ./a || echo \"status $?\"
        cc -c nonsense.c 2>/dev/null || echo \"refused: $?\"",
    )
}

fn perl() -> Job {
    let code = "my %h; $h{$_ % 101} .= chr(65 + $_ % 26) for 1..5003; \
        print join(',', map { length $h{$_} } sort { $a <=> $b } keys %h), \"\\n\"; \
        my @s = sort map { reverse } values %h; print scalar(@s), \"\\n\"; exit 7";
    Job::new(["perl", "-e", code]).env("PERL_HASH_SEED", "0")
}

fn sort() -> Job {
    let mut lines = String::new();
    for i in 0..9001u64 {
        let _ = writeln!(lines, "{} line {i}", i * 7919 % 10007);
    }
    Job::new(["sort", "-n", "--parallel=2"]).stdin(lines)
}

fn shell() -> Job {
    script(
        "f() { for i in 1 2 3 4 5 6 7; do printf '%s\\n' \"$1 $i\"; done; }
        f a | sort -r | head -n 3; x=$(f b | wc -l); echo \"$x\"
        (f c; exit 5) | tail -n 1; sleep 0 & wait $!; echo \"background $?\"
        trap 'echo trapped' EXIT; exit 9",
    )
}

fn bash() -> Job {
    let code = "declare -A m; for i in {1..211}; do m[k$((i % 17))]+=\"$i,\"; done; echo ${#m[@]}; \
        cat < <(seq 1 7) | while read -r n; do echo \"n=$n\"; done; \
        mapfile -t l < <(printf '%s\\n' c a b | sort); echo \"${l[*]}\"; exec 5>&1; echo five >&5; kill -TERM $$; echo not reached";
    Job::new(["bash", "-c", code])
}

/// leakscope on leakscope on a program: the inner one is a Rust program with
/// threads, sockets and ptrace.
fn leakscope() -> Job {
    let own = build::leakscope().unwrap_or_default();
    Job::new([own.as_os_str(), "run".as_ref(), "--help".as_ref()])
}
