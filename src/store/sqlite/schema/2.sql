-- Users' own keys for providers, sealed by the relay. A key for provider `custom` is bound to an origin, others have ''.
create table keys (
  id integer primary key autoincrement,
  user_id text not null,
  provider text not null,
  origin text not null,
  base_url text,
  last4 text not null,
  sealed text not null,
  created_at integer not null,
  unique (user_id, provider, origin)
) strict;
