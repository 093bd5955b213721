{{ config(tags=['current']) }}
{% set summed = known_relation('usage_trailing_partials') %}
{% set before = known_relation('usage_forecast_fits') if summed else none %}
{% set subject = ['scope', 'user_id', 'org_id', 'metric_type', 'as_of_date'] %}
{% set grain = subject + ['horizon'] %}

-- The platform is fitted each day, an organisation each week, a user every other week; after a day was
-- built again, all that were fitted on it or later. The sums of usage_trailing_partials say of which day
-- the fits are that are here.

with dates as (
    select
        (select max(usage_date) from {{ ref('stg_landed_days') }}) as as_of_date,
        {{ '(select max(as_of_date) from ' ~ summed ~ ')' if before else 'cast(null as date)' }} as fitted_as_of
),

rebuilt as (
    select min(replaced.usage_date) as first_date
    from {{ ref('usage_replaced_partials') }} as replaced
    cross join dates
    where
        replaced.usage_date <= dates.fitted_as_of
        and replaced.usage_date > {{ add_days('dates.as_of_date', '-' ~ days_seen()) }}
),

refits as (
    select
        calendar.calendar_date as as_of_date,
        {{ turn_of('calendar.calendar_date', nights_of_users()) }} as turn_of_users,
        case
            when calendar.calendar_date > {{ add_days('dates.as_of_date', '-' ~ nights_of_orgs()) }}
                then {{ turn_of('calendar.calendar_date', nights_of_orgs()) }}
        end as turn_of_orgs,
        calendar.calendar_date = dates.as_of_date as is_newest
    from {{ ref('stg_calendar') }} as calendar
    cross join dates
    cross join rebuilt
    where
        calendar.calendar_date > {{ add_days('dates.as_of_date', '-' ~ nights_of_users()) }}
        and calendar.calendar_date <= dates.as_of_date
        and (
            dates.fitted_as_of is null
            or dates.fitted_as_of > dates.as_of_date
            or calendar.calendar_date >= rebuilt.first_date
            or calendar.calendar_date > dates.fitted_as_of
        )
),

-- fits for the forecast, and earlier ones whose forecast is known by now: horizon is for how long
origins as (
    {% for horizon in horizons() %}
    select
        as_of_date,
        {{ horizon }} as horizon,
        {{ add_days('as_of_date', '-' ~ horizon) }} as origin_date
    from refits
    {% if not loop.last %} union all {% endif %}
    {% endfor %}
),

ages as (
    select
        origins.as_of_date,
        origins.horizon,
        landed_days.usage_date,
        {{ days_between('landed_days.usage_date', 'origins.origin_date') }} as age,
        {{ weekday_of('landed_days.usage_date') }} as weekday,
        week_before.usage_date is not null as has_week_before
    from origins
    inner join {{ ref('stg_landed_days') }} as landed_days
        on
            origins.as_of_date >= landed_days.usage_date
            and {{ add_days('origins.origin_date', '-' ~ fitted_days()) }} < landed_days.usage_date
    left join {{ ref('stg_landed_days') }} as week_before
        on {{ add_days('landed_days.usage_date', -7) }} = week_before.usage_date
),

-- landed days, for each origin of what age; those to come after it have a negative one
days as (
    select
        *,
        case when age >= 0 then {{ weight_of('age') }} end as weight,
        {{ estimate('case when age < 0 then ' ~ damping('-age') ~ ' end') }} as damping,
        {{ estimate(widening('-age')) }} as widening,
        case
            when age >= -7 then {{ add_days('usage_date', -7) }}
            when age >= -14 then {{ add_days('usage_date', -14) }}
            when age >= -21 then {{ add_days('usage_date', -21) }}
            else {{ add_days('usage_date', -28) }}
        end as naive_date
    from ages
),

-- users are tested on the shortest horizon only, since each further day read is a day of all cells
days_read as (
    select distinct usage_date from days
),

days_of_users as (
    select distinct usage_date from days where horizon <= {{ horizon_of_users() }}
),

people as (
    select
        active.user_id,
        refits.as_of_date,
        {{ is_tested('active.user_id') }} as is_tested
    from (
        select distinct users.user_id
        from {{ ref('active_users_daily') }} as users
        inner join days_of_users on users.usage_date = days_of_users.usage_date
    ) as active
    inner join refits on {{ turn_of_id('active.user_id', nights_of_users()) }} = refits.turn_of_users
),

orgs as (
    select
        active.org_id,
        refits.as_of_date
    from (
        select distinct usage.org_id
        from {{ ref('org_usage_daily') }} as usage
        inner join days_read on usage.usage_date = days_read.usage_date
        where usage.org_id is not null
    ) as active
    inner join refits on {{ turn_of_id('active.org_id', nights_of_orgs()) }} = refits.turn_of_orgs
),

cells as (
    select
        case when usage.org_id is null then 'user' else 'member' end as scope,
        usage.user_id,
        usage.org_id,
        usage.metric_type,
        people.as_of_date,
        people.is_tested,
        usage.usage_date,
        {{ forecastable('usage.total_quantity') }} as quantity
    from {{ ref('usage_daily') }} as usage
    inner join people on usage.user_id = people.user_id
    inner join days_of_users on usage.usage_date = days_of_users.usage_date
    where {{ is_additive('usage.metric_type') }}
    union all
    select
        'org' as scope,
        cast(null as {{ uuid_type() }}) as user_id,
        usage.org_id,
        usage.metric_type,
        orgs.as_of_date,
        true as is_tested,
        usage.usage_date,
        {{ forecastable('usage.total_quantity') }} as quantity
    from {{ ref('org_usage_daily') }} as usage
    inner join orgs on usage.org_id = orgs.org_id
    inner join days_read on usage.usage_date = days_read.usage_date
    where {{ is_additive('usage.metric_type') }}
    union all
    select
        'platform' as scope,
        cast(null as {{ uuid_type() }}) as user_id,
        cast(null as {{ uuid_type() }}) as org_id,
        usage.metric_type,
        refits.as_of_date,
        true as is_tested,
        usage.usage_date,
        {{ forecastable('usage.total_quantity') }} as quantity
    from {{ ref('platform_usage_daily') }} as usage
    inner join days_read on usage.usage_date = days_read.usage_date
    cross join refits
    where {{ is_additive('usage.metric_type') }}
),

seen as (
    select
        cells.*,
        days.horizon,
        days.age,
        days.weekday,
        days.weight,
        days.has_week_before
    from cells
    inner join days on cells.as_of_date = days.as_of_date and cells.usage_date = days.usage_date
    where
        days.age >= 0
        and (
            days.horizon = 0
            or (cells.is_tested and (cells.scope in ('org', 'platform') or days.horizon = {{ horizon_of_users() }}))
        )
),

sums as (
    select
        {% for weekday in weekdays() %}
        sum(case when weekday = {{ loop.index }} then quantity else 0 end) as {{ weekday }}_quantity,
        {% endfor %}
        sum(quantity * weight) as weighted_quantity,
        sum(quantity) as total_quantity,
        sum(cast({{ estimate('quantity') }} * {{ estimate('quantity') }} as decimal(38, 8))) as squares,
        sum(case when age < {{ fitted_days() }} / 2 then quantity else 0 end) as recent_quantity,
        count(*) as active_days,
        min(usage_date) as first_date,
        min(quantity) < 0 as may_be_negative,
        count(quantity) < count(*) as is_too_great,
        {{ grain | join(', ') }}
    from seen
    group by {{ grain | join(', ') }}
),

-- days without an event count from the first one that has any, as far as they are landed
spans as (
    select
        {% for weekday in weekdays() %}
        count(case when days.weekday = {{ loop.index }} then 1 end) as {{ weekday }}_days,
        {% endfor %}
        sum(days.weight) as weights,
        count(*) as history_days,
        count(case when days.age < {{ fitted_days() }} / 2 then 1 end) as recent_days,
        count(
            case when days.has_week_before and {{ add_days('days.usage_date', -7) }} >= firsts.usage_date then 1 end
        ) as pairs,
        firsts.as_of_date,
        firsts.horizon,
        firsts.usage_date as first_date
    from days as firsts
    inner join days
        on
            firsts.as_of_date = days.as_of_date
            and firsts.horizon = days.horizon
            and firsts.usage_date <= days.usage_date
    where firsts.age >= 0 and days.age >= 0
    group by firsts.as_of_date, firsts.horizon, firsts.usage_date
),

patterns as (
    select
        {% for weekday in weekdays() %}
        {{ estimate('sums.' ~ weekday ~ '_quantity') }} * spans.history_days
        / nullif({{ estimate('sums.total_quantity') }} * spans.{{ weekday }}_days, 0) as {{ weekday }},
        {% endfor %}
        sums.metric_type,
        sums.as_of_date,
        sums.horizon
    from sums
    inner join spans
        on
            sums.as_of_date = spans.as_of_date
            and sums.horizon = spans.horizon
            and sums.first_date = spans.first_date
    where sums.scope = 'platform' and sums.total_quantity > 0 and not sums.is_too_great
),

estimates as (
    select
        {{ estimate('sums.weighted_quantity') }} / spans.weights as mean_quantity,
        case
            when least(spans.recent_days, spans.history_days - spans.recent_days) >= {{ fewest_days() }}
                then (
                    {{ estimate('sums.recent_quantity') }} / spans.recent_days
                    - {{ estimate('sums.total_quantity - sums.recent_quantity') }}
                    / (spans.history_days - spans.recent_days)
                ) * 2 / {{ fitted_days() }}
            else 0
        end as free_trend,
        {% for weekday in weekdays() %}
        case
            when sums.total_quantity > 0
                then least(greatest(
                    (
                        {{ estimate('sums.' ~ weekday ~ '_quantity') }} * spans.history_days
                        / {{ estimate('sums.total_quantity') }}
                        + {{ pattern_days() }} * coalesce(
                            case
                                when sums.scope = 'platform' then patterns.{{ weekday }}
                                else {{ coarse('patterns.' ~ weekday) }}
                            end, 1
                        )
                    ) / (spans.{{ weekday }}_days + {{ pattern_days() }}),
                    0
                ), 7)
            else 1
        end as {{ weekday }},
        spans.{{ weekday }}_days,
        {{ estimate('sums.' ~ weekday ~ '_quantity') }} as {{ weekday }}_quantity,
        {% endfor %}
        {{ estimate('sums.squares') }} as squares,
        spans.history_days,
        spans.pairs,
        sums.may_be_negative,
        sums.first_date,
        4 * sums.active_days >= spans.history_days as is_regular,
        sums.scope,
        sums.user_id,
        sums.org_id,
        sums.metric_type,
        sums.as_of_date,
        sums.horizon
    from sums
    inner join spans
        on
            sums.as_of_date = spans.as_of_date
            and sums.horizon = spans.horizon
            and sums.first_date = spans.first_date
    left join patterns
        on
            sums.metric_type = patterns.metric_type
            and sums.as_of_date = patterns.as_of_date
            and sums.horizon = patterns.horizon
    where not sums.is_too_great and spans.history_days >= {{ fewest_days() }}
),

levels as (
    select
        *,
        case
            when may_be_negative then mean_quantity + {{ trend_days() }} * free_trend
            else greatest(mean_quantity + {{ trend_days() }} * free_trend, 0)
        end as level
    from estimates
),

-- no day comes below zero of whoever has never been there
parameters as (
    select
        *,
        case
            when may_be_negative then free_trend
            else greatest(free_trend, -{{ steepest_fall() }} * level)
        end as trend
    from levels
),

-- squares over all days, those without an event included, from sums over those with one
fits as (
    select
        *,
        {{ band() }} * sqrt(greatest(
            0,
            squares
            {% for weekday in weekdays() %}
            + level * {{ weekday }} * (level * {{ weekday }} * {{ weekday }}_days - 2 * {{ weekday }}_quantity)
            {% endfor %}
        ) / history_days) as spread
    from parameters
),

-- the days that an earlier fit is tested on, with what it gives for them
forecasts as (
    select
        (fits.level + fits.trend * days.damping) * {{ of_weekday('days.weekday', 'fits.') }} as expected,
        fits.spread * days.widening as half_width,
        days.usage_date,
        days.naive_date,
        fits.scope,
        fits.user_id,
        fits.org_id,
        fits.metric_type,
        fits.as_of_date,
        fits.horizon
    from fits
    inner join days on fits.as_of_date = days.as_of_date and fits.horizon = days.horizon
    where fits.horizon > 0 and days.age < 0 and fits.is_regular
),

-- where the seasonal naive forecast is unknown, because its day is not landed, nothing is compared
outcomes as (
    select
        count(*) as tested_days,
        count(
            case
                when abs(coalesce({{ estimate('actual.quantity') }}, 0) - forecasts.expected) <= forecasts.half_width
                    then 1
            end
        ) as days_within,
        sum(cast(
            abs(coalesce({{ estimate('actual.quantity') }}, 0) - forecasts.expected) as decimal(38, 9)
        )) as error,
        sum(abs(coalesce(actual.quantity, 0) - coalesce(naive.quantity, 0))) as naive_error,
        forecasts.scope,
        forecasts.user_id,
        forecasts.org_id,
        forecasts.metric_type,
        forecasts.as_of_date,
        forecasts.horizon
    from forecasts
    inner join days as naive_days
        on
            forecasts.as_of_date = naive_days.as_of_date
            and forecasts.horizon = naive_days.horizon
            and forecasts.naive_date = naive_days.usage_date
    left join cells as actual
        on forecasts.usage_date = actual.usage_date and {{ same('forecasts', 'actual', subject) }}
    left join cells as naive
        on forecasts.naive_date = naive.usage_date and {{ same('forecasts', 'naive', subject) }}
    where actual.scope is null or actual.quantity is not null
    group by
        forecasts.scope,
        forecasts.user_id,
        forecasts.org_id,
        forecasts.metric_type,
        forecasts.as_of_date,
        forecasts.horizon
),

-- how far days are from the same weekday of the week before, by which errors are measured: days
-- with events, then days without any a week after one
scales as (
    select
        sum(difference) as difference,
        {{ grain | join(', ') }}
    from (
        select
            abs(later.quantity - coalesce(earlier.quantity, 0)) as difference,
            later.scope,
            later.user_id,
            later.org_id,
            later.metric_type,
            later.as_of_date,
            later.horizon
        from seen as later
        inner join fits on {{ same('later', 'fits', grain) }}
        left join cells as earlier
            on
                {{ add_days('later.usage_date', -7) }} = earlier.usage_date
                and {{ same('later', 'earlier', subject) }}
        where
            later.horizon > 0
            and later.has_week_before
            and {{ add_days('later.usage_date', -7) }} >= fits.first_date
            and fits.is_regular
        union all
        select
            abs(earlier.quantity) as difference,
            earlier.scope,
            earlier.user_id,
            earlier.org_id,
            earlier.metric_type,
            earlier.as_of_date,
            earlier.horizon
        from seen as earlier
        inner join days
            on
                earlier.as_of_date = days.as_of_date
                and earlier.horizon = days.horizon
                and {{ add_days('earlier.usage_date', 7) }} = days.usage_date
        left join cells as later
            on days.usage_date = later.usage_date and {{ same('earlier', 'later', subject) }}
        where earlier.horizon > 0 and days.age >= 0 and later.scope is null
    ) as differences
    group by {{ grain | join(', ') }}
)

select
    sums.scope,
    sums.user_id,
    sums.org_id,
    sums.metric_type,
    sums.as_of_date,
    sums.horizon,
    cast(fits.level as decimal(38, 9)) as level,
    cast(fits.trend as decimal(38, 9)) as trend,
    {% for weekday in weekdays() %}
    cast(cast(fits.{{ weekday }} as decimal(7, 6)) as decimal(38, 9)) as {{ weekday }},
    {% endfor %}
    cast(fits.spread as decimal(38, 9)) as spread,
    spans.history_days,
    sums.may_be_negative,
    {% for error in ['error', 'naive_error'] %}
    cast(
        {{ estimate('outcomes.' ~ error) }} / outcomes.tested_days
        / nullif({{ estimate('scales.difference') }} / fits.pairs, 0) as decimal(38, 9)
    ) as {{ 'mase' if error == 'error' else 'naive_mase' }},
    {% endfor %}
    outcomes.tested_days,
    outcomes.days_within
from sums
inner join spans
    on
        sums.as_of_date = spans.as_of_date
        and sums.horizon = spans.horizon
        and sums.first_date = spans.first_date
left join fits on {{ same('sums', 'fits', grain) }}
left join outcomes on {{ same('sums', 'outcomes', grain) }}
left join scales on {{ same('sums', 'scales', grain) }}
inner join refits on sums.as_of_date = refits.as_of_date
where (sums.scope <> 'platform' or refits.is_newest)
{% if before %}
union all
select
    kept.scope,
    kept.user_id,
    kept.org_id,
    kept.metric_type,
    kept.as_of_date,
    kept.horizon,
    kept.level,
    kept.trend,
    {% for weekday in weekdays() %}
    kept.{{ weekday }},
    {% endfor %}
    kept.spread,
    kept.history_days,
    kept.may_be_negative,
    kept.mase,
    kept.naive_mase,
    kept.tested_days,
    kept.days_within
from {{ before }} as kept
cross join dates
where
    kept.as_of_date <= dates.as_of_date
    and kept.as_of_date not in (select as_of_date from refits)
    and case kept.scope
        when 'platform' then kept.as_of_date = dates.as_of_date
        when 'org' then kept.as_of_date > {{ add_days('dates.as_of_date', '-' ~ nights_of_orgs()) }}
        else kept.as_of_date > {{ add_days('dates.as_of_date', '-' ~ nights_of_users()) }}
    end
{% endif %}
