{{ config(tags=['current']) }}
{% set summed = known_relation('usage_trailing_partials') %}
{% set before = known_relation('usage_anomalies') if summed else none %}
{% set subject = ['scope', 'user_id', 'org_id', 'metric_type'] %}

-- Days are judged that are new, or that were built again, or before which a day was that they are
-- compared with. The sums of usage_trailing_partials say up to which day that was done.

with dates as (
    select
        (select max(usage_date) from {{ ref('stg_landed_days') }}) as as_of_date,
        {{ '(select max(as_of_date) from ' ~ summed ~ ')' if before else 'cast(null as date)' }} as judged_as_of
),

replaced_days as (
    select distinct usage_date from {{ ref('usage_replaced_partials') }}
),

kept_days as (
    select landed_days.usage_date
    from {{ ref('stg_landed_days') }} as landed_days
    cross join dates
    where landed_days.usage_date > {{ add_days('dates.as_of_date', '-' ~ judged_days()) }}
),

judged_days as (
    select distinct kept_days.usage_date
    from kept_days
    cross join dates
    left join replaced_days
        on
            kept_days.usage_date >= replaced_days.usage_date
            and kept_days.usage_date <= {{ add_days('replaced_days.usage_date', 7 * 7) }}
    where
        dates.judged_as_of is null
        or kept_days.usage_date > dates.judged_as_of
        or replaced_days.usage_date is not null
),

-- the days that each is compared with, and which of them are landed
base_days as (
    select
        judged_days.usage_date as judged_date,
        landed_days.usage_date,
        {{ days_between('landed_days.usage_date', 'judged_days.usage_date') }} as days_before
    from judged_days
    inner join {{ ref('stg_landed_days') }} as landed_days
        on
            judged_days.usage_date >= landed_days.usage_date
            and {{ add_days('judged_days.usage_date', -49) }} <= landed_days.usage_date
),

known_bases as (
    select
        judged_date,
        count(case when days_before between 1 and 29 then 1 end) = 29 as has_mean,
        count(case when days_before > 0 and days_before % 7 = 0 then 1 end) = 7 as has_weeks
    from base_days
    group by judged_date
),

-- what is too little to be judged: less than five times what a user of the meter uses on a day
volumes as (
    select
        base_days.judged_date,
        usage.metric_type,
        5 * {{ estimate('sum(' ~ forecastable('usage.total_quantity') ~ ')') }}
        / sum(usage.active_users) as least_quantity
    from base_days
    inner join {{ ref('platform_usage_daily') }} as usage on base_days.usage_date = usage.usage_date
    where base_days.days_before between 1 and 29 and {{ is_additive('usage.metric_type') }}
    group by base_days.judged_date, usage.metric_type
    having sum(usage.active_users) > 0
),

days_read as (
    select distinct usage_date
    from base_days
    where days_before <= 29 or days_before % 7 = 0
),

-- a quantity that is too great to calculate with is unknown, and whoever has one is not judged by it
amounts as (
    select
        case when usage.org_id is null then 'user' else 'member' end as scope,
        usage.user_id,
        usage.org_id,
        usage.metric_type,
        usage.usage_date,
        {{ forecastable('usage.total_quantity') }} as quantity
    from {{ ref('usage_daily') }} as usage
    inner join days_read on usage.usage_date = days_read.usage_date
    where usage.user_id is not null and {{ is_additive('usage.metric_type') }}
    union all
    select
        'org' as scope,
        cast(null as {{ uuid_type() }}) as user_id,
        usage.org_id,
        usage.metric_type,
        usage.usage_date,
        {{ forecastable('usage.total_quantity') }} as quantity
    from {{ ref('org_usage_daily') }} as usage
    inner join days_read on usage.usage_date = days_read.usage_date
    where usage.org_id is not null and {{ is_additive('usage.metric_type') }}
    union all
    select
        'platform' as scope,
        cast(null as {{ uuid_type() }}) as user_id,
        cast(null as {{ uuid_type() }}) as org_id,
        usage.metric_type,
        usage.usage_date,
        {{ forecastable('usage.total_quantity') }} as quantity
    from {{ ref('platform_usage_daily') }} as usage
    inner join days_read on usage.usage_date = days_read.usage_date
    where {{ is_additive('usage.metric_type') }}
),

-- whoever has much on the day, or had it on most of the same weekdays before
subjects as (
    select
        base_days.judged_date,
        amounts.scope,
        amounts.user_id,
        amounts.org_id,
        amounts.metric_type,
        min(volumes.least_quantity) as least_quantity
    from amounts
    inner join base_days on amounts.usage_date = base_days.usage_date
    inner join volumes
        on base_days.judged_date = volumes.judged_date and amounts.metric_type = volumes.metric_type
    where
        base_days.days_before % 7 = 0
        and amounts.quantity > 0
        and {{ estimate('amounts.quantity') }} >= volumes.least_quantity
    group by
        base_days.judged_date,
        amounts.scope,
        amounts.user_id,
        amounts.org_id,
        amounts.metric_type
    having min(base_days.days_before) = 0 or count(*) >= 4
),

-- a day's base, its own quantity among it
histories as (
    select
        subjects.judged_date,
        subjects.scope,
        subjects.user_id,
        subjects.org_id,
        subjects.metric_type,
        min(subjects.least_quantity) as least_quantity,
        sum(case when base_days.days_before between 1 and 29 then amounts.quantity else 0 end) as base_quantity,
        max(base_days.days_before) >= 23 as was_there,
        {% for week in range(1, 8) %}
        sum(case when base_days.days_before = {{ 7 * week }} then amounts.quantity else 0 end) as quantity_{{ week }},
        {% endfor %}
        sum(case when base_days.days_before = 0 then amounts.quantity else 0 end) as quantity
    from subjects
    inner join amounts on {{ same('subjects', 'amounts', subject) }}
    inner join base_days
        on subjects.judged_date = base_days.judged_date and amounts.usage_date = base_days.usage_date
    where base_days.days_before <= 29 or base_days.days_before % 7 = 0
    group by
        subjects.judged_date,
        subjects.scope,
        subjects.user_id,
        subjects.org_id,
        subjects.metric_type
    having count(amounts.quantity) = count(*)
),

weeks as (
    {% for week in range(1, 8) %}
    select
        judged_date,
        scope,
        user_id,
        org_id,
        metric_type,
        {{ week }} as week,
        quantity_{{ week }} as quantity
    from histories
    {% if not loop.last %} union all {% endif %}
    {% endfor %}
),

ranked_weeks as (
    select
        *,
        row_number() over (
            partition by judged_date, scope, user_id, org_id, metric_type order by quantity, week
        ) as place
    from weeks
),

medians as (
    select
        judged_date,
        scope,
        user_id,
        org_id,
        metric_type,
        quantity as median
    from ranked_weeks
    where place = 4
),

ranked_distances as (
    select
        weeks.judged_date,
        weeks.scope,
        weeks.user_id,
        weeks.org_id,
        weeks.metric_type,
        medians.median,
        abs(weeks.quantity - medians.median) as distance,
        row_number() over (
            partition by weeks.judged_date, weeks.scope, weeks.user_id, weeks.org_id, weeks.metric_type
            order by abs(weeks.quantity - medians.median), weeks.week
        ) as place
    from weeks
    inner join medians on weeks.judged_date = medians.judged_date and {{ same('weeks', 'medians', subject) }}
),

compared as (
    select
        histories.judged_date,
        histories.scope,
        histories.user_id,
        histories.org_id,
        histories.metric_type,
        'mean_29' as rule,
        histories.quantity,
        histories.least_quantity,
        {{ estimate('histories.base_quantity') }} / 29 as expected,
        {{ estimate('histories.quantity') }} * 29
        / nullif({{ estimate('histories.base_quantity') }}, 0) as score
    from histories
    inner join known_bases on histories.judged_date = known_bases.judged_date
    where known_bases.has_mean and histories.was_there and histories.base_quantity > 0
    union all
    select
        histories.judged_date,
        histories.scope,
        histories.user_id,
        histories.org_id,
        histories.metric_type,
        'weekday_median' as rule,
        histories.quantity,
        histories.least_quantity,
        {{ estimate('ranked_distances.median') }} as expected,
        ({{ estimate('histories.quantity') }} - {{ estimate('ranked_distances.median') }})
        / greatest(
            1.4826 * {{ estimate('ranked_distances.distance') }}, 0.1 * {{ estimate('ranked_distances.median') }}
        ) as score
    from histories
    inner join known_bases on histories.judged_date = known_bases.judged_date
    inner join ranked_distances
        on
            histories.judged_date = ranked_distances.judged_date
            and {{ same('histories', 'ranked_distances', subject) }}
    where known_bases.has_weeks and ranked_distances.place = 4 and ranked_distances.median > 0
),

judged as (
    select
        *,
        case
            when rule = 'mean_29' and score > 3 and quantity >= least_quantity then 'spike'
            when
                rule = 'weekday_median'
                and score > 6
                and quantity >= 2 * expected
                and quantity >= least_quantity
                then 'spike'
            when
                rule = 'weekday_median'
                and score < -6
                and 2 * quantity <= expected
                and expected >= least_quantity
                then 'drop'
        end as kind
    from compared
)

select
    judged_date as usage_date,
    scope,
    user_id,
    org_id,
    metric_type,
    rule,
    kind,
    cast(quantity as decimal(38, 9)) as quantity,
    cast(expected as decimal(38, 9)) as expected,
    cast(score as decimal(38, 9)) as score
from judged
where kind is not null
{% if before %}
union all
select
    kept.usage_date,
    kept.scope,
    kept.user_id,
    kept.org_id,
    kept.metric_type,
    kept.rule,
    kept.kind,
    kept.quantity,
    kept.expected,
    kept.score
from {{ before }} as kept
inner join kept_days on kept.usage_date = kept_days.usage_date
where kept.usage_date not in (select usage_date from judged_days)
{% endif %}
